"""Finds input files and reads them as they are, Parquet or CSV; what can't be read becomes a problem."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from feature_repo.contracts.types import Problem

_SUFFIXES = (".parquet", ".csv", ".csv.gz")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_ID_COLUMNS = ("user_id", "item_id", "impression_id")

# Canonical spellings only: 007 is a code, and turning it into a number would make it equal to 7.
_INTEGER = r"^(0|-?[1-9]\d{0,18})$"
_DECIMAL = r"^-?((0|[1-9]\d{0,17})(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?$|^[Nn]a[Nn]$|^-?[Ii]nf(inity)?$"
_BOOLEAN = r"^([Tt]rue|[Ff]alse)$"


@dataclass(frozen=True)
class RawFile:
    """One input file and its content."""

    name: str
    frame: pl.DataFrame


def read_files(inputs: Sequence[str], what: str) -> tuple[list[RawFile], list[Problem]]:
    """Read every file that `inputs` name: paths, folders or globs, each ``.parquet``, ``.csv`` or ``.csv.gz``.

    Parameters
    ----------
    inputs
        Paths and patterns.
    what
        ``events``, ``users`` or ``items``, for messages.

    Returns
    -------
    tuple
        The readable files in the order of their names, and one problem per input that is not.
    """
    paths, problems = _resolve(inputs, what)
    files: list[RawFile] = []
    for path in paths:
        try:
            frame = _read_csv(path) if _suffix(path) != ".parquet" else _read_parquet(path)
        except (pl.exceptions.PolarsError, pa.ArrowException, OSError, UnicodeError) as error:
            problems.append(_separated(path, _header(path)) or _unreadable(path, error))
            continue
        if frame.is_empty():
            problems.append(Problem(str(path), None, "has no rows", 0, f"Give {what} with rows, or leave it out."))
            continue
        separated = _separated(path, frame.columns)
        if separated is not None:
            problems.append(separated)
            continue
        files.append(RawFile(str(path), frame))
    return _with_csv_types(files), problems


def _resolve(inputs: Sequence[str], what: str) -> tuple[list[Path], list[Problem]]:
    """Return the files that `inputs` name, and a problem for each input that names none."""
    check_path = f"Check the path of the {what}."
    paths: list[Path] = []
    problems = []
    for given in inputs:
        try:
            found, nothing = _matches(given)
            absent = [file for file in found if not file.exists()]
        except OSError as error:
            problems.append(Problem(given, None, f"can't be reached: {error.strerror}", 0, check_path))
            continue
        if not found:
            problems.append(Problem(given, None, nothing, 0, check_path))
        for file in found:
            if file in absent:
                problems.append(Problem(str(file), None, "does not exist", 0, check_path))
            elif not _suffix(file):
                remedy = f"Give Parquet or CSV, named by suffix: {', '.join(_SUFFIXES)}."
                problems.append(Problem(str(file), None, "is of an unknown kind", 0, remedy))
            else:
                paths.append(file)
    return list(dict.fromkeys(paths)), problems


def _matches(given: str) -> tuple[list[Path], str]:
    """Return the files of one path, folder or glob in order, and what to say if there are none."""
    path = Path(given)
    if path.is_dir():
        inside = (child for child in path.rglob("*") if _suffix(child) and not _hidden(child, path))
        return sorted(inside), "is a folder without .parquet or .csv files"
    if path.exists() or path.is_symlink() or not glob.has_magic(given):
        return [path], ""
    return sorted(Path(match) for match in glob.glob(given, recursive=True)), "matches no file"


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(root).parts)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), "")


def _read_parquet(path: Path) -> pl.DataFrame:
    # Arrow raises on a damaged file where Polars' own reader may panic. A single file, not a dataset: folder
    # names such as month=2017-01 must not turn into columns.
    with pq.ParquetFile(path) as file:
        table = file.read()
    for place, field in enumerate(table.schema):
        if pa.types.is_decimal256(field.type):  # Polars panics on them; some warehouses export nothing else
            table = table.set_column(place, field.name, table.column(place).cast(pa.float64()))
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _read_csv(path: Path) -> pl.DataFrame:
    """Read every column as text; types are decided later, over all files."""
    try:
        return pl.read_csv(path, infer_schema=False, glob=False)
    except pl.exceptions.NoDataError:
        return pl.DataFrame()


def _header(path: Path) -> list[str]:
    """Return the columns of a CSV whose rows cannot be read; none where that cannot be said either."""
    if _suffix(path) == ".parquet":
        return []
    try:
        return pl.read_csv(path, infer_schema=False, glob=False, n_rows=0).columns
    except (pl.exceptions.PolarsError, OSError, UnicodeError):
        return []


def _separated(path: Path, columns: Sequence[str]) -> Problem | None:
    """Return a problem if a CSV's only column is a header that something else than commas parts."""
    if _suffix(path) == ".parquet" or len(columns) != 1:
        return None
    found = next((word for mark, word in _SEPARATORS.items() if mark in columns[0]), None)
    if found is None:
        return None
    remedy = "Write the file again, separated by commas (in pandas: to_csv without sep)."
    return Problem(str(path), None, f"is separated by {found}, not by commas", 0, remedy)


def _unreadable(path: Path, error: Exception) -> Problem:
    kind = "CSV" if _suffix(path) != ".parquet" else "Parquet"
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    remedy = "Write the file again (it may be truncated) and check that it can be read."
    if "more fields than defined" in first_line:
        first_line = "a row has more fields than the header"
        remedy = "Write the file again, separated by commas, with double quotes around a value that holds one."
    return Problem(str(path), None, f"can't be read as {kind}: {first_line}", 0, remedy)


def _with_csv_types(files: list[RawFile]) -> list[RawFile]:
    """Give the columns of CSV files the type that fits them in all files; ids are judged file by file."""
    csvs = [file for file in files if not file.name.lower().endswith(".parquet")]
    shared: dict[str, pl.DataType] = {}
    for name in sorted({column for file in csvs for column in file.frame.columns} - set(_ID_COLUMNS)):
        shared[name] = _type_of([file.frame[name] for file in csvs if name in file.frame.columns])
    typed = []
    for file in files:
        if file not in csvs:
            typed.append(file)
            continue
        types = {name: _type_of([file.frame[name]]) for name in _ID_COLUMNS if name in file.frame.columns} | shared
        typed.append(RawFile(file.name, _cast(file.frame, types)))
    return typed


def _type_of(columns: Sequence[pl.Series]) -> pl.DataType:
    if all(column.null_count() == len(column) for column in columns):
        return pl.Null()
    for pattern, dtype in ((_INTEGER, pl.Int64()), (_BOOLEAN, pl.Boolean()), (_DECIMAL, pl.Float64())):
        if all(column.str.contains(pattern).all() and _fits(column, dtype) for column in columns):
            return dtype
    return pl.String()


def _fits(column: pl.Series, dtype: pl.DataType) -> bool:
    """Return whether no value is lost, such as whole numbers beyond 64 bits."""
    return dtype == pl.Boolean or column.cast(dtype, strict=False).null_count() == column.null_count()


def _cast(frame: pl.DataFrame, types: dict[str, pl.DataType]) -> pl.DataFrame:
    def cast(name: str, dtype: pl.DataType) -> pl.Expr:
        column = pl.col(name)
        return column.str.to_lowercase() == "true" if dtype == pl.Boolean else column.cast(dtype)

    return frame.with_columns(cast(name, types[name]).alias(name) for name in frame.columns)
