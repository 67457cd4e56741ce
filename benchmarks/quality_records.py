"""The records of measured quality, ours and the peers': one JSON list, `benchmarks/results/quality.json`.

A record says what a model with some embeddings is worth on a task of a data set, and the command that measures it
again. `docs/results.md` and the report page are made from them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feature_repo.lake import replacing

RESULTS = Path(__file__).parent / "results" / "quality.json"
KEY = ("dataset", "task", "model", "embeddings")
FIGURES = (
    "auc",
    "log_loss",
    "normalized_entropy",
    "relative_auc_lift",
    "ci95",
    "share_of_possible_gain",
    "recall_at_100",
    "ranking_cost",
)
REQUIRED = (*KEY, *FIGURES, "seeds", "rows", "command")
OPTIONAL = (
    "share_ci95",
    "adjusted_ci95",
    "p_value",
    "adjusted_p_value",
    "comparisons",
    "positives",
    "baseline",
    "against_default",
    "against_default_ci95",
    "note",
)


def put(records: Sequence[dict[str, Any]], path: Path = RESULTS) -> list[dict[str, Any]]:
    """Write records; those with the same dataset, task, model and embeddings are replaced, the others stay.

    A ranking cost that was not measured this time stays as it was: what the weights are makes no difference to it.

    Parameters
    ----------
    records
        Each with every name in ``REQUIRED`` (null where it does not apply) and any of ``OPTIONAL``. `ranking_cost`
        is in milliseconds per request of 500 candidates on one thread; `ci95` is that of the relative lift over
        `baseline` (by default the same model without embeddings), or of the recall where there is no lift.

    Returns
    -------
    list
        All records that are in the file now, sorted by their key.

    Raises
    ------
    ValueError
        If a record lacks a name or has one that nobody reads, or a figure is no finite number.
    """
    for record in records:
        _check(record)
    names = {name: place for place, name in enumerate((*REQUIRED, *OPTIONAL))}
    kept = {_key(record): record for record in read(path)}
    for record in records:
        before = kept.get(_key(record), {}).get("ranking_cost")
        kept[_key(record)] = {**record, "ranking_cost": before} if record["ranking_cost"] is None else record
    merged = [dict(sorted(kept[key].items(), key=lambda pair: names[pair[0]])) for key in sorted(kept)]
    with replacing(path) as staged:
        staged.write_text(json.dumps(merged, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return merged


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return all records, sorted by their key; none where there is no file yet."""
    return list(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []


def _key(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(record[name]) for name in KEY)


def _check(record: dict[str, Any]) -> None:
    who = " / ".join(str(record.get(name)) for name in KEY)
    if missing := [name for name in REQUIRED if name not in record]:
        raise ValueError(f"The record {who} lacks {', '.join(missing)}; write null for what does not apply.")
    if unknown := sorted(set(record) - {*REQUIRED, *OPTIONAL}):
        raise ValueError(
            f"The record {who} has {', '.join(unknown)}, which nobody reads. Known: {', '.join(OPTIONAL)}."
        )
    for name in KEY:
        if not isinstance(record[name], str) or not record[name]:
            raise ValueError(f"The record {who} needs text as {name}.")
    for name in FIGURES:
        value = record[name]
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and not (isinstance(number, int | float) and math.isfinite(number)):
                raise ValueError(f"The record {who} has {value!r} as {name}; a finite number or null is needed.")
