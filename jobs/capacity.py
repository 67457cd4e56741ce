"""Capacity: what a number of users, items, floats and refreshes takes in storage, memory, network, time and money.

Everything is a product of the workload and a measured unit cost. The unit costs lie in ``unit_costs.json``, each with
the benchmark that it comes from; `python -m benchmarks.capacity_tables` writes that file and nobody edits it. Prices
and the machine are parameters.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from feature_repo.contracts.errors import ConfigError

UNIT_COSTS = Path(__file__).with_name("unit_costs.json")
GB = 1e9
MONTH_HOURS, MONTH_DAYS = 730.0, 30.4
# Arrow's list<float> has offsets of 32 bits, and a snapshot is built and read back as one array of lists.
LIST_FLOATS = 2**31 - 1


@dataclass(frozen=True)
class Workload:
    """What is to be kept, how often it is refreshed, and on what.

    Attributes
    ----------
    users, items, dim
        Entities with a vector, and its floats.
    refreshes, days
        Refreshes within so many days; all of them are kept.
    versions
        Embedding versions that are refreshed side by side.
    events
        Events of a user per day.
    train_rows, label_rows
        Samples that one upstream training reads, and labels of one training set, once per period each.
    requests
        Served requests per second; each reads one user.
    own_choices
        Items that the list of a user's own choices has on average; 0 where none are published.
    machine_memory, machine_disk
        Of one machine, in GB.
    cores
        Over which the work of a refresh is spread for `hours`.
    """

    users: int
    items: int
    dim: int
    refreshes: int
    days: int = 90
    versions: int = 1
    events: float = 5.0
    train_rows: int = 100_000_000
    label_rows: int = 100_000_000
    requests: float = 1000.0
    own_choices: float = 100.0
    machine_memory: float = 256.0
    machine_disk: float = 8000.0
    cores: int = 16

    def __post_init__(self) -> None:
        counts = {"users": self.users, "items": self.items, "dim": self.dim, "refreshes": self.refreshes}
        more = {"days": self.days, "versions": self.versions, "cores": self.cores}
        for name, value in {**counts, **more}.items():
            if value < 1:
                raise ConfigError(f"--{name} is {value}: give a whole number of at least 1.")
        if self.dim > 65_536:
            raise ConfigError(f"--dim is {self.dim}: give the floats of one vector, such as 64 or 256.")
        if min(self.events, self.train_rows, self.label_rows, self.requests, self.own_choices) < 0:
            raise ConfigError("--events, --train-rows, --label-rows, --requests and --own-choices cannot be negative.")
        if min(self.machine_memory, self.machine_disk) <= 0:
            raise ConfigError("--machine-memory and --machine-disk are GB of one machine: above 0.")


@dataclass(frozen=True)
class Prices:
    """Dollars. The defaults are round figures of the order of public clouds' list prices; set your own.

    Attributes
    ----------
    storage, memory
        Per GB and month.
    core
        Per core and hour.
    network
        Per GB moved.
    """

    storage: float = 0.02
    memory: float = 3.0
    core: float = 0.04
    network: float = 0.01

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise ConfigError(f"--price-{name} is {value}: a price cannot be negative.")


@dataclass(frozen=True)
class Line:
    """One figure of a plan, by how vectors are stored: as trained, or rounded to 255 steps of one scale."""

    group: str
    what: str
    unit: str
    float32: float
    int8: float
    how: str


@dataclass(frozen=True)
class Limit:
    """What stops one machine: from how many users on, with the same items per user, and what moves it."""

    what: str
    users: int
    knob: str


@dataclass(frozen=True)
class Plan:
    """All figures, and the limits in the order in which growth meets them."""

    workload: Workload
    prices: Prices
    lines: tuple[Line, ...]
    limits: tuple[Limit, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def value(self, what: str) -> float:
        """Return one figure for float32 vectors."""
        return next(line.float32 for line in self.lines if line.what == what)


class UnitCosts:
    """The measured costs; those of a row are a fixed part and a part per float, those of a list per item."""

    def __init__(self, path: Path = UNIT_COSTS) -> None:
        self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))

    def row(self, name: str, dim: float) -> float:
        """Return a cost of one row with a vector of `dim` floats."""
        entry = self.entries[name]
        return float(entry["fixed"]) + float(entry["per_float"]) * dim

    def lists(self, name: str, work: Workload) -> float:
        """Return a cost of one user's own choices; 0 where none are published."""
        return self.row(f"choices_{name}", work.own_choices) if work.own_choices else 0.0

    def one(self, name: str) -> float:
        """Return a cost that does not depend on the width."""
        return float(self.entries[name]["value"])


def read_count(text: str, name: str) -> int:
    """Read a whole number such as ``250000``, ``10M`` or ``1B``; ConfigError if it is none.

    Examples
    --------
    >>> read_count("1.5M", "users")
    1500000
    """
    scale = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower(), 1)
    try:
        number = float(text[:-1] if scale > 1 else text.replace("_", "").replace(",", "")) * scale
    except ValueError:
        number = float("nan")
    if not (0 < number < 1e15 and number == round(number)):
        raise ConfigError(f"--{name} is '{text}': write a whole number above 0, such as 250000, 10M or 1B.")
    return int(number)


def run(workload: Workload, prices: Prices | None = None, units: UnitCosts | None = None) -> Plan:
    """Work out a plan."""
    prices, units = prices or Prices(), units or UnitCosts()
    lines = [*_storage(workload, units), *_memory(workload, units), *_network(workload, units)]
    lines += _time(workload, units)
    lines += _cost(workload, prices, lines)
    return Plan(workload, prices, tuple(lines), tuple(_limits(workload, units)))


def _rows(work: Workload) -> float:
    return float(work.versions) * (work.users + work.items)


def _storage(work: Workload, units: UnitCosts) -> list[Line]:
    kept = _rows(work) * work.refreshes / GB
    events = work.users * work.events * work.days / GB
    parquet, twin = units.row("parquet_bytes", work.dim), units.row("twin_bytes", work.dim)
    rounded = units.row("parquet_int8_bytes", work.dim)
    log = events * units.one("event_bytes")
    own = work.users * work.refreshes / GB * units.lists("lake_bytes", work)
    found = [
        Line("storage", "event log", "GB", log, log, "users x events x days"),
        Line("storage", "snapshots, Parquet", "GB", kept * parquet, kept * rounded, "rows x refreshes"),
        Line("storage", "twins of snapshots", "GB", kept * twin, kept * twin, "rows x refreshes; always float32"),
        Line("storage", "own choices, with twins", "GB", own, own, "users x refreshes"),
    ]
    return [*found, _sum("storage", "lake", "GB", found)]


def _memory(work: Workload, units: UnitCosts) -> list[Line]:
    own = work.users * units.lists("redis_bytes", work) / GB
    online = _rows(work) * units.row("redis_bytes", work.dim) / GB + own
    log = (units.one("log_base_bytes") + work.users * work.events * work.days * units.one("log_memory_bytes")) / GB
    most = max(work.users, work.items)
    refresh = units.one("refresh_base_bytes") / GB + most * units.row("refresh_memory_bytes", work.dim) / GB
    gate = units.one("gate_base_bytes") / GB + most * units.one("gate_memory_bytes") / GB
    bank = work.versions * work.items * units.row("twin_bytes", work.dim) / GB
    return [
        Line("memory", "online store", "GB", online, online, "rows and own choices, in Redis"),
        Line("memory", "online store: own choices", "GB", own, own, "users; part of the line above"),
        Line("memory", "refresh: what it keeps of the log", "GB", log, log, "events within the days, in one process"),
        Line("memory", "refresh: the vectors", "GB", refresh, refresh, "rows of the larger entity, in one process"),
        Line("memory", "gate", "GB", gate, gate, "rows of the larger entity, in one process"),
        Line("memory", "items of a server", "GB", bank, bank, "items, mapped; shared by its processes"),
    ]


def _network(work: Workload, units: UnitCosts) -> list[Line]:
    rows, load = _rows(work) / GB, units.row("redis_network_bytes", work.dim)
    parquet, rounded = units.row("parquet_bytes", work.dim), units.row("parquet_int8_bytes", work.dim)
    # Written once; read by the gate, by the smoothing of the next refresh and its gate, and by the load.
    # Own choices are smoothed with nothing, but the gate holds those after them against them.
    own = work.users / GB * (4 * units.lists("parquet_bytes", work) + units.lists("network_bytes", work))
    moved, moved_int8 = (rows * (4 * size + load) + own for size in (parquet, rounded))
    seconds = work.days * 86_400
    read = work.versions * work.requests * seconds * units.row("redis_network_bytes", work.dim) / GB
    return [
        Line(
            "network",
            "moved by one refresh",
            "GB",
            moved,
            moved_int8,
            "snapshot written, read three times, loaded",
        ),
        Line(
            "network",
            "moved by all refreshes",
            "GB",
            moved * work.refreshes,
            moved_int8 * work.refreshes,
            "x refreshes",
        ),
        Line("network", "served requests", "GB", read, read, "one user per request and version"),
    ]


def _time(work: Workload, units: UnitCosts) -> list[Line]:
    rows, hour = _rows(work), 3600.0
    events = work.users * work.events * work.days * work.versions

    def line(what: str, seconds: float, how: str) -> Line:
        return Line("time", what, "core hours", seconds / hour, seconds / hour, how)

    steps = [
        line("refresh: read the log", events * units.one("log_read_core_seconds"), "events within the days"),
        line("refresh: infer", rows * units.one("infer_core_seconds"), "rows; the preset `small`, any width"),
        line("refresh: smooth", rows * units.row("smooth_core_seconds", work.dim), "rows"),
        line("refresh: gate", rows * units.row("gate_core_seconds", work.dim), "rows"),
        line("refresh: write", rows * units.row("write_core_seconds", work.dim), "rows, Parquet and twin"),
        line("refresh: load online", rows * units.row("load_core_seconds", work.dim), "rows, both sides"),
        line("refresh: own choices", work.users * units.lists("core_seconds", work), "users; gate, write, load"),
    ]
    whole = _sum("time", "one refresh", "core hours", steps)
    clock = whole.float32 / work.cores
    label = work.label_rows * units.one("label_core_seconds") * work.dim / units.one("label_dim")
    return [
        *steps,
        whole,
        Line(
            "time", f"one refresh on {work.cores} cores", "hours", clock, clock, "if it divides; one process uses one"
        ),
        line("one training", work.train_rows * units.one("train_core_seconds"), "samples; the preset `small`"),
        line("one training set", label, "labels, two views"),
    ]


def _cost(work: Workload, prices: Prices, lines: list[Line]) -> list[Line]:
    at = {line.what: line for line in lines}
    months = work.days / MONTH_DAYS

    def monthly(what: str, price: float, how: str, *names: str, share: float = 1.0) -> Line:
        plain = sum(at[name].float32 for name in names) * price * share
        rounded = sum(at[name].int8 for name in names) * price * share
        return Line("cost", what, "$/month", plain, rounded, how)

    found = [
        monthly("storage of the lake", prices.storage, f"${prices.storage:g} per GB and month", "lake"),
        monthly("memory online", prices.memory, f"${prices.memory:g} per GB and month", "online store"),
        monthly(
            "cores of refreshes",
            prices.core,
            f"${prices.core:g} per core hour",
            "one refresh",
            share=work.refreshes / months,
        ),
        monthly(
            "cores of training",
            prices.core,
            f"one training and one training set in {work.days} days",
            "one training",
            "one training set",
            share=1 / months,
        ),
        monthly(
            "network",
            prices.network,
            f"${prices.network:g} per GB moved",
            "moved by all refreshes",
            "served requests",
            share=1 / months,
        ),
    ]
    return [*found, _sum("cost", "all", "$/month", found)]


def _sum(group: str, what: str, unit: str, lines: list[Line]) -> Line:
    return Line(group, what, unit, sum(line.float32 for line in lines), sum(line.int8 for line in lines), "sum")


def _limits(work: Workload, units: UnitCosts) -> list[Limit]:
    """Return for each bound of one machine the users at which it is met, fewest first."""
    per_user = work.items / work.users
    rows, larger = work.versions * (1 + per_user), max(1.0, per_user)
    memory, interval = work.machine_memory * GB, work.days * 86_400 / work.refreshes
    events = work.events * work.days
    in_process = larger * units.row("refresh_memory_bytes", work.dim) + events * units.one("log_memory_bytes")
    seconds = events * work.versions * units.one("log_read_core_seconds") + rows * (
        units.one("infer_core_seconds")
        + sum(units.row(f"{step}_core_seconds", work.dim) for step in ("smooth", "gate", "write", "load"))
    )
    seconds += units.lists("core_seconds", work)
    row_bytes = units.row("parquet_bytes", work.dim) + units.row("twin_bytes", work.dim)
    stored = rows * work.refreshes * row_bytes + events * units.one("event_bytes")
    stored += work.refreshes * units.lists("lake_bytes", work)
    found: list[tuple[str, float, str]] = [
        (
            f"a snapshot is one Arrow list array: 2^31 floats, {LIST_FLOATS // work.dim:,} rows",
            LIST_FLOATS / work.dim / larger,
            "refresh in partitions (docs/scale.md), or fewer floats",
        ),
        (
            f"a refresh holds actions and vectors in one process: {work.machine_memory:g} GB",
            max(0.0, memory - units.one("refresh_base_bytes") - units.one("log_base_bytes")) / in_process,
            "refresh in partitions, a shorter coverage_days, a larger machine",
        ),
        (
            f"a refresh on one core takes the whole interval: {interval / 3600:.1f} h",
            interval / seconds,
            "fewer refreshes, refresh in partitions on more cores",
        ),
        (
            f"one Redis server holds all rows online: {work.machine_memory:g} GB",
            memory / (rows * units.row("redis_bytes", work.dim) + units.lists("redis_bytes", work)),
            "fewer versions, floats or own_choices, shorter coverage_days, several Redis servers (Feast loads them)",
        ),
        (
            f"the lake lies on one disk: {work.machine_disk:g} GB",
            work.machine_disk * GB / stored,
            "prune older snapshots (`headwater version prune`), fewer refreshes or own_choices, object storage",
        ),
    ]
    return [Limit(what, int(users), knob) for what, users, knob in sorted(found, key=lambda bound: bound[1])]
