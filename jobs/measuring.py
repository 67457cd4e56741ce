"""Where the rows of a snapshot are measured for the gate: in this process, or by the workers of a Spark profile.

Each worker reads row groups of the file itself and sends back narrow rows and totals, never a vector. The driver puts
them together in the order of the rows, so that the gate's tables are those of one process; sums of floats differ in
the last digits.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contracts.errors import LakeError
from feature_repo.lake import Home
from feature_repo.profile import reads_with_spark
from validation.row_table import Part
from validation.statistics import Scan, ScanPlan, scan_groups, scan_here, together

_DAMAGE = re.compile(r"(OSError|pyarrow\.lib\.\w+): ")
_RESULT = "number bigint, part binary"


def scan_of(home: Home, path: Path) -> Scan:
    """Return what measures a file: workers where the profile has some and the file lies in the home they reach."""
    inside = path.resolve().is_relative_to(home.root.resolve())
    return partial(scan_on_spark, home) if reads_with_spark() and inside else scan_here


def scan_on_spark(home: Home, plan: ScanPlan) -> Iterator[Part]:
    """Measure a snapshot on the session of the chosen profile, one task per row group.

    Raises
    ------
    LakeError
        If Spark gave back other row groups than were asked for.
    OSError
        If a worker could not decode one.
    """
    from pyspark.errors import PythonException

    from jobs.store import spark_session

    footer = pq.read_metadata(plan.path)
    sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    starts = (np.cumsum(sizes) - sizes).tolist()
    measure = partial(_measure, plan=plan, starts=starts)
    numbers = spark_session(home).range(0, len(starts), 1, max(1, len(starts)))
    try:
        table = numbers.mapInArrow(measure, _RESULT).toArrow().sort_by("number")
    except PythonException as error:
        # The last line of the worker's traceback; what damage raises here, the gate expects.
        told = [line for line in str(error).splitlines() if _DAMAGE.match(line)]
        if told:
            raise OSError(told[-1]) from error
        raise
    if table["number"].to_pylist() != list(range(len(starts))):
        raise LakeError(f"Spark measured {table.num_rows:,} of {len(starts):,} row groups of {plan.path}. Try again.")
    for part in table["part"]:
        yield pickle.loads(part.as_py())


def _measure(ranges: Iterator[pa.RecordBatch], plan: ScanPlan, starts: list[int]) -> Iterator[pa.RecordBatch]:
    """Measure row groups by their numbers, on a worker."""
    for numbers in ranges:
        for number in numbers.column(0).to_pylist():
            part = together(plan, scan_groups(plan, [number], starts[number]))
            yield pa.RecordBatch.from_pydict({"number": [number], "part": [pickle.dumps(part)]})
