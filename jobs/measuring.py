"""Where the rows of a snapshot are measured for the gate: in this process, or as aggregations on Spark.

On Spark a worker measures row groups of the file and hands on narrow rows, totals and hashes, never a vector. Spark
merges those in the order of the rows, level by level, with an aggregate function, and counts equal vectors by their
hashes. The driver gets one result, from which come the tables of one process; sums of floats differ in the last digits.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_repo.lake import Home
from feature_repo.profile import reads_with_spark
from validation.row_table import Part
from validation.statistics import Scan, ScanPlan, scan_groups, scan_here, together

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_DAMAGE = re.compile(r"(OSError|pyarrow\.lib\.\w+): ")
_MEASURED = "number bigint, part binary, hashes array<bigint>"
# How many parts are merged at once.
FAN = 32


def scan_of(home: Home, path: Path) -> Scan:
    """Return what measures a file: workers where the profile has some and the file lies in the home they reach."""
    inside = path.resolve().is_relative_to(home.root.resolve())
    return partial(scan_on_spark, home) if reads_with_spark() and inside else scan_here


def scan_on_spark(home: Home, plan: ScanPlan) -> Iterable[Part]:
    """Measure a snapshot on the session of the chosen profile.

    Returns
    -------
    iterable of Part
        One for the whole snapshot; none where it has no row group.

    Raises
    ------
    OSError
        If a worker could not decode a row group.
    """
    from pyspark.errors import PythonException
    from pyspark.sql import functions as F

    from jobs.store import spark_session

    footer = pq.read_metadata(plan.path)
    sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    starts = (np.cumsum(sizes) - sizes).tolist()
    numbers = spark_session(home).range(0, len(starts), 1, max(1, len(starts)))
    # Kept, since it is aggregated twice; Spark computes again what is lost with a worker.
    measured = numbers.mapInArrow(partial(_measure, plan=plan, starts=starts), _MEASURED).persist()
    try:
        parts = _merged(plan, measured.select("number", "part"), len(starts)).collect()
        hashes = measured.select(F.explode("hashes").alias("hash")).groupBy("hash").count()
        repeated = hashes.agg(F.sum(F.col("count") - 1)).first()
    except PythonException as error:
        # The last line of the worker's traceback; what damage raises here, the gate expects.
        told = [line for line in str(error).splitlines() if _DAMAGE.match(line)]
        if told:
            raise OSError(told[-1]) from error
        raise
    finally:
        measured.unpersist()
    found: list[Part] = [pickle.loads(row["part"]) for row in parts]
    for part in found:
        part.totals.repeated_vectors = (repeated and repeated[0]) or 0
    return found


def _measure(ranges: Iterator[pa.RecordBatch], plan: ScanPlan, starts: list[int]) -> Iterator[pa.RecordBatch]:
    """Measure row groups by their numbers, on a worker."""
    for numbers in ranges:
        for number in numbers.column(0).to_pylist():
            part = together(plan, scan_groups(plan, [number], starts[number]))
            hashes = pa.array(part.totals.take_hashes().view(np.int64))
            found = {"number": [number], "part": [pickle.dumps(part)], "hashes": _one_list(hashes)}
            yield pa.RecordBatch.from_pydict(found)


def _one_list(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def _merged(plan: ScanPlan, parts: DataFrame, count: int) -> DataFrame:
    """Return the parts as one, merged `FAN` at a time so that no worker holds all of them."""
    from pyspark.sql import functions as F

    def merge(numbers: pa.Array, parts: pa.Array) -> bytes:
        ordered = pc.sort_indices(numbers)
        return pickle.dumps(together(plan, (pickle.loads(part.as_py()) for part in parts.take(ordered))))

    arrow_udf: Any = F.arrow_udf  # whose stub knows no aggregate functions, which type hints make
    merge_parts = arrow_udf(merge, "binary")
    while True:
        bucket = F.call_function("div", F.col("number"), F.lit(FAN)).alias("number")
        parts = parts.groupBy(bucket).agg(merge_parts("number", "part").alias("part"))
        count = -(-count // FAN)
        if count <= 1:
            return parts
