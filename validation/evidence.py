"""What only the caller can measure, and the rules over it: the model's own output again, and live consumers.

The gate imports neither models nor jobs. The refresh job runs the model once more for a sample of entities and
scores labelled rows with each live consumer; what it finds comes here as frames and numbers.

Shapes: S sampled entities, D embedding dim.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_repo.contracts.errors import ConfigError
from validation.comparison import gather_vectors, match_ids, read_previous
from validation.measures import FloatArray
from validation.rules import Rule, must, warn
from validation.specs import Bounds, SnapshotSpec
from validation.tables import Summary, read_column, write_summary


@dataclass(frozen=True)
class RawSample:
    """What the model says of some entities of the snapshot, computed again on the spot.

    Attributes
    ----------
    ids
        S ids that the snapshot has.
    vectors
        float32 (S, D) of unit length, before smoothing; a row of NaN where the model has no vector of an entity.
    norms
        float32 (S,), the norms before scaling.
    """

    ids: pa.Array
    vectors: FloatArray
    norms: FloatArray


@dataclass(frozen=True)
class Canary:
    """How well one live consumer does on recent rows with the previous snapshot and with the new one.

    Attributes
    ----------
    rows
        Labelled rows that were scored, or users that were asked about.
    before, now
        The metric with the previous and with the new snapshot, everything else equal.
    noise
        Standard error of their difference over resampled users.
    metric, unit
        What is measured, more is better, and what the rows are.
    """

    consumer: str
    rows: int
    before: float
    now: float
    noise: float
    metric: str = "AUC"
    unit: str = "rows"

    def __post_init__(self) -> None:
        """Refuse names that cannot name a check."""
        if not re.fullmatch(r"\w+", self.consumer):
            raise ConfigError(f"Consumer '{self.consumer}' cannot name a check: use letters, digits and underscores.")


@dataclass(frozen=True)
class Evidence:
    """All that the caller measured of one staged snapshot."""

    raw: RawSample | None = None
    canaries: Sequence[Canary] = ()


def evidence_statistics(
    path: Path, spec: SnapshotSpec, previous: Path | None, found: Evidence, bounds: Bounds, workdir: Path
) -> tuple[Path, Summary]:
    """Hold the snapshot against the model's own output, and write one row of numbers with the canaries'.

    Returns
    -------
    tuple
        Path of ``<snapshot_id>.evidence.parquet``, and its values: ``agreement_rows`` compared,
        ``agreement_off`` of them too far from what the model and the smoothing give, ``agreement_min`` their
        lowest cosine, ``agreement_norms_off``; per consumer ``canary_<name>_fall``.

    Raises
    ------
    LakeError
        If the previous snapshot cannot be read.
    """
    summary: Summary = {"snapshot": spec.snapshot_id}
    if found.raw is not None:
        summary |= _agreement(path, spec, previous, found.raw, bounds.agreement)
    for canary in found.canaries:
        summary[f"canary_{canary.consumer}_fall"] = canary.before - canary.now
    return write_summary(workdir / f"{spec.snapshot_id}.evidence.parquet", summary), summary


def evidence_rules(found: Evidence, bounds: Bounds) -> list[Rule]:
    """Return every rule over the evidence; none where there is no evidence."""
    rules = []
    if found.raw is not None:
        rules += [
            must("agreement_rows", "agreement_rows", (1, None), "no entity could be computed again"),
            must("agreement", "agreement_off", (0, 0), "vectors that are not what the model and the smoothing give"),
            warn(
                "agreement_usual", "agreement_min", (bounds.usual_agreement, None), "vectors were rounded on their way"
            ),
            must("agreement_norms", "agreement_norms_off", (0, 0), "norms that are not the model's"),
        ]
    for canary in found.canaries:
        least = bounds.canary_fall if canary.metric == "AUC" else bounds.canary_recall_fall
        ceiling = max(least, bounds.canary_noises * canary.noise)
        note = (
            f"{canary.metric} {canary.before:.4f} before and {canary.now:.4f} now on {canary.rows:,} {canary.unit}, "
            f"noise {canary.noise:.4f}"
        )
        name = f"canary_{canary.consumer}"
        rules.append(must(name, f"{name}_fall", (None, ceiling), "a live consumer does worse with it", note))
    return rules


def _agreement(path: Path, spec: SnapshotSpec, previous: Path | None, raw: RawSample, least: float) -> Summary:
    id_name = f"{spec.entity}_id"
    ids = read_column(path, id_name)
    here, sample = match_ids(ids, raw.ids)
    stored_SD = gather_vectors(path, here, spec.dim)
    expected_SD = raw.vectors[sample].astype(np.float64)
    if previous is not None and spec.smoothing:
        known, there = match_ids(ids.take(pa.array(here)), read_previous(previous, id_name))
        old_SD = gather_vectors(previous, there, spec.dim)
        mixed = spec.smoothing * old_SD + (1 - spec.smoothing) * expected_SD[known]
        # Where old and new cancel out, smoothing leaves the new vector as it is.
        cancelled = np.linalg.norm(mixed, axis=1, keepdims=True) <= 1e-6
        expected_SD[known] = np.where(cancelled, expected_SD[known], mixed)
    cosine_S = _cosine(stored_SD.astype(np.float64), expected_SD)
    norm_S = read_column(path, "norm").take(pa.array(here)).to_numpy(zero_copy_only=False)
    return {
        "agreement_rows": len(here),
        # Entities the model has no vector of give NaN, which is not near enough either.
        "agreement_off": int((~(cosine_S >= least)).sum()),
        "agreement_min": float(np.nan_to_num(cosine_S, nan=-1.0).min()) if len(here) else -1.0,
        "agreement_norms_off": int((~(np.abs(norm_S / raw.norms[sample] - 1) <= 0.01)).sum()),
    }


def _cosine(a_SD: npt.NDArray[np.float64], b_SD: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    length_S = np.linalg.norm(a_SD, axis=1) * np.linalg.norm(b_SD, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.einsum("sd,sd->s", a_SD, b_SD) / length_S)
