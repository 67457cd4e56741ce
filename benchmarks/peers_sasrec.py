"""SASRec of RecBole, run in an environment of its own: it needs older packages than the project has.

    make .venv-recbole/.ready
    make bench-peers

The two sides talk through files: the choices before the moment in order of time, and the users that are asked about;
back come SASRec's scores. Only items that have a published vector can be ranked, as for everybody. Where users turn to
more than what is to be foreseen, such as what they look at, it reads and foresees all of that: the other peers do best
with it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np

from benchmarks.peers_retrieval import Asked, Scored, Setting
from benchmarks.peers_rows import digest
from feature_repo.lake import read_json, replacing
from jobs.retrieve_questions import Question

RECBOLE = "1.2.1"
SCRIPT = Path(__file__).parent / "peers_sasrec_model.py"


def in_sequence(known: Question) -> tuple[np.ndarray, np.ndarray]:
    """Return user and item positions of every choice of a question, oldest first, those of one moment in any order.

    A log may have the choices of one moment, such as the lines of a receipt, in the order of their ids. A model of
    sequences would learn that order, and not what is chosen next.
    """
    users, items = known.pairs
    order = np.lexsort((np.random.default_rng(0).random(len(users)), -known.ages))
    return users[order], items[order]


def scored(asked: Asked, python: Path, folder: Path, tell: Callable[..., None]) -> tuple[Scored, Setting]:
    """Return what SASRec, trained on what was known, thinks of every item, and how it was trained.

    What is trained lies in `folder` under a name of its own for each question and each version of the model's script.

    Raises
    ------
    RuntimeError
        If the other environment's run failed; its output is in the message.
    """
    past = "activity" if len(asked.activity.pairs[0]) > len(asked.ever.pairs[0]) else "all"
    users, items = in_sequence(asked.activity if past == "activity" else asked.ever)
    given = {"users": users, "items": items, "asked": asked.question.asked, "count": np.array(len(asked.items))}
    folder = folder / digest(
        SCRIPT.read_text(), *(sha256(np.ascontiguousarray(v).tobytes()).hexdigest() for v in given.values())
    )
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "scored.npz"
    if not done.exists():
        tell("SASRec: train in its own environment")
        with replacing(folder / "asked.npz") as staged, staged.open("wb") as out:
            np.savez(out, **given)
        # RecBole writes its logs where it is run.
        command = [str(python.absolute()), str(SCRIPT), str(folder.resolve())]
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise RuntimeError(
                f"SASRec failed in {python} (exit {ran.returncode}):\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
            )
    with np.load(done) as found:
        scores = found["scores"]
    cold = np.isnan(scores).any(axis=1)
    scores[cold] = np.bincount(items, minlength=len(asked.items))
    # Its scores are logits, which have a scale of their own and may be below 0.
    return Scored(asked, scores, 1.0), {"past": past, **read_json(folder / "training.json")}
