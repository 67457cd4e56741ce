"""Carry measured results into `headwater plan` and its page.

    python -m benchmarks.capacity_tables            # after `make bench-capacity` or another benchmark named below
    python -m benchmarks.capacity_tables --check    # exit code 1 if command or page is not what the results say

It writes `jobs/unit_costs.json`, where every entry names the file that it was worked out from, and in docs/scale.md the
tables between the markers `<!-- table NAME -->` and `<!-- end -->`: `units`, `limits`, and `plan GROUP` for all.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from feature_repo.lake import replacing
from jobs import capacity

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"(<!-- table (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
SIZES = {
    "10M users": capacity.Workload(10_000_000, 100_000, 256, 90),
    "100M users": capacity.Workload(100_000_000, 1_000_000, 256, 90),
    "1B users": capacity.Workload(1_000_000_000, 10_000_000, 256, 90),
}


def main() -> None:
    """Write unit costs and page, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args()
    costs = json.dumps(unit_costs(RESULTS), indent=1) + "\n"
    before = PAGE.read_text(encoding="utf-8")
    if chosen.check:
        same = costs == capacity.UNIT_COSTS.read_text(encoding="utf-8") and filled(before) == before
        sys.exit(0 if same else "Command or page is not what the results say: python -m benchmarks.capacity_tables")
    with replacing(capacity.UNIT_COSTS) as staged:
        staged.write_text(costs, encoding="utf-8")
    with replacing(PAGE) as staged:
        staged.write_text(filled(before), encoding="utf-8")


def unit_costs(results: Path) -> dict[str, dict[str, Any]]:
    """Return every unit cost with its source, from the records in a folder."""
    records = json.loads((results / "capacity.json").read_text(encoding="utf-8"))
    labels = json.loads((results / "pit.json").read_text(encoding="utf-8"))
    own = "benchmarks/results/capacity.json"

    def of(what: str) -> list[dict[str, Any]]:
        return [record for record in records if record["what"] == what]

    def row(what: str, *fields: str, unit: str, wide: str = "floats") -> dict[str, Any]:
        """Return the line in the width through what the larger sizes cost."""
        most = max(record["rows"] for record in of(what))
        at = {r["dim"]: sum(r[field] for field in fields) / r["rows"] for r in of(what) if r["rows"] == most}
        return _line(at, unit, f"{own}, {what}, {most:,} rows of {' and '.join(map(str, sorted(at)))} {wide}")

    def memory(what: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the growth of the peak with the rows, by width, and what a process takes without any."""
        slopes, bases = {}, []
        for dim in sorted({record["dim"] for record in of(what)}):
            few, many = sorted((r for r in of(what) if r["dim"] == dim), key=lambda r: int(r["rows"]))
            slopes[dim] = (many["peak_rss_gb"] - few["peak_rss_gb"]) * 1e9 / (many["rows"] - few["rows"])
            bases.append(few["peak_rss_gb"] * 1e9 - slopes[dim] * few["rows"])
        source = f"{own}, {what}, growth of the peak between two sizes"
        return _line(slopes, "bytes per row", source), _value(max(0.0, *bases), "bytes", source)

    refresh_rows, refresh_base = memory("refresh")
    judged = json.loads((results / "gate.json").read_text(encoding="utf-8"))
    small, large = (record for record in judged if record["engine"] == "headwater with previous")
    gate_slope = (large["peak_rss_gb"] - small["peak_rss_gb"]) * 1e9 / (large["rows"] - small["rows"])
    gate_told = "benchmarks/results/gate.json, 1M and 10M rows of 64 floats"
    (log,) = of("log")
    more = log["larger_events"] - log["events"]
    log_slope = (log["larger_read_memory_bytes"] - log["read_memory_bytes"]) / more
    log_told = f"{own}, log, growth of the peak between two sizes"
    # What a row costs the gate at ten million rows; for wider vectors by their ratio at the size of capacity.json.
    at = {r["dim"]: r["core_seconds"] for r in of("gate")}
    per_row = large["seconds"] / large["rows"]
    ratio = at[256] / at[64]
    join = next(
        r for r in labels if r["engine"] == "headwater, twins" and r["size"] == "1M labels x 30 snapshots, 2 views"
    )
    return {
        "event_bytes": _value(log["event_bytes"] / log["events"], "bytes per event", f"{own}, log"),
        "parquet_bytes": row("refresh", "parquet_bytes", unit="bytes per row"),
        "parquet_int8_bytes": row("int8", "parquet_bytes_common_scale", unit="bytes per row"),
        "twin_bytes": row("refresh", "twin_bytes", unit="bytes per row"),
        "redis_bytes": row("redis", "memory_bytes", unit="bytes per row"),
        "redis_network_bytes": row("redis", "network_bytes", unit="bytes per row"),
        "refresh_memory_bytes": refresh_rows,
        "refresh_base_bytes": refresh_base,
        "gate_memory_bytes": _value(gate_slope, "bytes per row", gate_told),
        "gate_base_bytes": _value(small["peak_rss_gb"] * 1e9 - gate_slope * small["rows"], "bytes", gate_told),
        "log_memory_bytes": _value(log_slope, "bytes per event", log_told),
        "log_base_bytes": _value(max(0.0, log["read_memory_bytes"] - log_slope * log["events"]), "bytes", log_told),
        "log_read_core_seconds": _value(
            log["larger_read_core_seconds"] / log["larger_events"], "core seconds per event", f"{own}, log"
        ),
        "infer_core_seconds": _value(1 / log["infer_per_s"], "core seconds per vector", f"{own}, log"),
        "smooth_core_seconds": row("refresh", "smooth_core_seconds", unit="core seconds per row"),
        "gate_core_seconds": _line(
            {64: per_row, 256: per_row * ratio},
            "core seconds per row",
            f"benchmarks/results/gate.json, 10M rows of 64 floats; x {ratio:.2f} for 256 by {own}, gate",
        ),
        "write_core_seconds": row("refresh", "write_core_seconds", unit="core seconds per row"),
        "load_core_seconds": row("redis", "core_seconds", "server_core_seconds", unit="core seconds per row"),
        "choices_lake_bytes": row(
            "choices", "parquet_bytes", "twin_bytes", unit="bytes per list, and item", wide="items"
        ),
        "choices_parquet_bytes": row("choices", "parquet_bytes", unit="bytes per list, and item", wide="items"),
        "choices_redis_bytes": row("choices", "memory_bytes", unit="bytes per list, and item", wide="items"),
        "choices_network_bytes": row("choices", "network_bytes", unit="bytes per list, and item", wide="items"),
        "choices_core_seconds": row(
            "choices",
            "write_core_seconds",
            "gate_core_seconds",
            "core_seconds",
            "server_core_seconds",
            unit="core seconds per list, and item",
            wide="items",
        ),
        "train_core_seconds": _value(1 / log["train_per_s"], "core seconds per sample", f"{own}, log"),
        "label_core_seconds": _value(
            join["cpu_seconds"] / 1e6,
            "core seconds per label, two views of 64 floats",
            "benchmarks/results/pit.json, 1M labels",
        ),
        "label_dim": _value(64, "floats of the vectors of those labels", "benchmarks/pit_data.py"),
    }


def _line(at: dict[int, float], unit: str, source: str) -> dict[str, Any]:
    narrow, wide = min(at), max(at)
    slope = (at[wide] - at[narrow]) / (wide - narrow)
    fixed = at[narrow] - slope * narrow
    if fixed < 0:  # noise: nothing has a cost below none, and the wider row says more
        fixed, slope = 0.0, at[wide] / wide
    return {"fixed": _round(fixed), "per_float": _round(slope), "unit": unit, "source": source}


def _value(value: float, unit: str, source: str) -> dict[str, Any]:
    return {"value": _round(value), "unit": unit, "source": source}


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def filled(page: str) -> str:
    """Return the page with every marked table made anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{table(found['name'])}\n\n{found[3]}", page)


def table(name: str) -> str:
    """Return one table of the page as Markdown."""
    from jobs.cli_plan import figure

    if name == "units":
        rows = [
            {
                "unit cost": key,
                "fixed": f"{entry.get('fixed', entry.get('value')):.4g}",
                "per float": f"{entry['per_float']:.4g}" if "per_float" in entry else "",
                "unit": entry["unit"],
                "source": entry["source"],
            }
            for key, entry in capacity.UnitCosts().entries.items()
        ]
        return markdown(rows)
    plans = {size: capacity.run(work) for size, work in SIZES.items()}
    first = next(iter(plans.values()))
    if name == "limits":
        return markdown([{"users": f"{n.users:,}", "what": n.what, "knob": n.knob} for n in first.limits])
    group = name.removeprefix("plan ")
    rows = []
    for index, line in enumerate(first.lines):
        if line.group == group:
            cells = {}
            for size, plan in plans.items():
                found = plan.lines[index]
                both = figure(found.float32) if found.float32 == found.int8 else _both(found.float32, found.int8)
                cells[size] = both
            rows.append({"what": line.what, **cells, "unit": line.unit, "how": line.how})
    return markdown(rows)


def _both(plain: float, rounded: float) -> str:
    from jobs.cli_plan import figure

    return f"{figure(plain)} (int8 steps: {figure(rounded)})"


def markdown(rows: list[dict[str, str]]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)])


if __name__ == "__main__":
    main()
