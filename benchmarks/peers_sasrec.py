"""SASRec of RecBole, run in an environment of its own: it needs older packages than the project has.

    make .venv-recbole/.ready
    make bench-peers

The two sides talk through files: the choices before the moment in order of time, and the users that are asked about;
back come the items that SASRec ranks first. Only items that have a published vector can be ranked, as for everybody.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_retrieval import Asked, K
from benchmarks.peers_rows import digest
from feature_repo.lake import read_json, replacing

RECBOLE = "1.2.1"
SCRIPT = Path(__file__).parent / "peers_sasrec_model.py"


def in_sequence(test: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Return user and item positions of every choice ever made, oldest first, those of one moment in any order.

    A log may have the choices of one moment, such as the lines of a receipt, in the order of their ids. A model of
    sequences would learn that order, and not what is chosen next.
    """
    users, items = test.ever.pairs
    order = np.lexsort((np.random.default_rng(0).random(len(users)), -test.ever.ages))
    return users[order], items[order]


def recall(test: Asked, python: Path, folder: Path, tell: Callable[..., None]) -> tuple[np.ndarray, dict[str, Any]]:
    """Return recall@100 per user of SASRec, and how it was trained.

    What is trained lies in `folder` under a name of its own for each question and each version of the model's script.

    Raises
    ------
    RuntimeError
        If the other environment's run failed; its output is in the message.
    """
    users, items = in_sequence(test)
    asked = {"users": users, "items": items, "asked": test.question.asked, "popular": test.question.popular[0]}
    folder = folder / digest(
        SCRIPT.read_text(), *(sha256(np.ascontiguousarray(v).tobytes()).hexdigest() for v in asked.values())
    )
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "ranked.npz"
    if not done.exists():
        tell("SASRec: train in its own environment")
        with replacing(folder / "asked.npz") as staged, staged.open("wb") as out:
            np.savez(out, **asked)
        # RecBole writes its logs where it is run.
        command = [str(python.absolute()), str(SCRIPT), str(folder.resolve()), str(K)]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(
                f"SASRec failed in {python} (exit {ran.returncode}):\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
            )
    with np.load(done) as found:
        return test.recall(found["positions"]), read_json(folder / "training.json")
