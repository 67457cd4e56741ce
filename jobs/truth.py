"""The true probabilities of a simulated log, for evaluation alone: no training and no feature reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from feature_repo.contracts.errors import ConfigError

COLUMNS = {"ctr": "p_click", "cvr": "p_conversion"}


def oracle_logits(truth: Path, task: str, impression_ids: pl.Series) -> np.ndarray:
    """Return the logits of the true probabilities of some impressions, in their order.

    Parameters
    ----------
    truth
        Folder of Parquet files with ``impression_id`` and the task's probability: ``p_click``, and ``p_conversion``
        for P(a conversion is in the log | click).
    task
        ``ctr`` or ``cvr``.
    impression_ids
        N ids.

    Returns
    -------
    numpy.ndarray
        float64 [N].

    Raises
    ------
    ConfigError
        If the folder holds no such files, or not every impression.
    """
    files, column = truth_files(truth), COLUMNS[task]
    wanted = impression_ids.alias("impression_id").to_frame()
    try:
        found = (
            pl.scan_parquet(files)
            .select("impression_id", pl.col(column).cast(pl.Float64).alias("p"))
            .join(wanted.lazy(), on="impression_id", how="semi")
            .collect(engine="streaming")
        )
        rows = wanted.join(found, on="impression_id", how="left", maintain_order="left")
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"{truth} does not hold the truth of this log: {error}".splitlines()[0]) from error
    if rows.height != wanted.height or rows["p"].null_count():
        unknown = rows["p"].null_count()
        raise ConfigError(
            f"{truth} lacks {unknown:,} of {wanted.height:,} impressions of the test period, or has some twice: it is "
            "the truth of another log. Set `truth` in config.yaml to the folder beside the log that was ingested."
        )
    probability = rows["p"].clip(1e-9, 1 - 1e-9).to_numpy()
    return np.asarray(np.log(probability) - np.log1p(-probability))


def truth_files(truth: Path) -> list[Path]:
    """Return the Parquet files of a folder of true probabilities; ConfigError if it has none."""
    files = sorted(truth.glob("*.parquet"))
    if not files:
        raise ConfigError(
            f"{truth} holds no Parquet files. Set `truth` in config.yaml, or give --truth: the folder that `headwater "
            "simulate` wrote beside its log. Without one, set it to null."
        )
    return files
