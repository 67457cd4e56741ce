"""SASRec of RecBole, run in an environment of its own: it needs older packages than the project has.

    make .venv-recbole/.ready
    make bench-peers

The two sides talk through files: the choices before the moment in order of time, and the users that are asked about;
back come the items that SASRec ranks first. Only items that have a published vector can be ranked, as for everybody.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_retrieval import Asked, K
from feature_repo.lake import read_json, replacing

RECBOLE = "1.2.1"
SCRIPT = Path(__file__).parent / "peers_sasrec_model.py"


def recall(test: Asked, python: Path, folder: Path, tell: Callable[..., None]) -> tuple[np.ndarray, dict[str, Any]]:
    """Return recall@100 per user of SASRec, and how it was trained.

    Raises
    ------
    RuntimeError
        If the other environment's run failed; its output is in the message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "ranked.npz"
    if not done.exists():
        tell("SASRec: train in its own environment")
        users, items = test.ever.pairs
        with replacing(folder / "asked.npz") as staged, staged.open("wb") as out:
            np.savez(out, users=users, items=items, asked=test.question.asked, popular=test.question.popular[0])
        # RecBole writes its logs where it is run.
        command = [str(python.absolute()), str(SCRIPT), str(folder.resolve()), str(K)]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(
                f"SASRec failed in {python} (exit {ran.returncode}):\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
            )
    with np.load(done) as found:
        return test.recall(found["positions"]), read_json(folder / "training.json")
