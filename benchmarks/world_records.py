"""What was measured of a simulated world beside its truth, by world and kind: `benchmarks/results/worlds.json`.

Tables of `docs/results.md` and `docs/world.md` are made of it (`python -m benchmarks.quality_tables`).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feature_repo.lake import replacing

RESULTS = Path(__file__).parent / "results" / "worlds.json"
KINDS = ("vectors", "ways", "conversions", "ranker")


@dataclass
class Measured:
    """A table that is printed as it is measured, and kept when it is complete.

    Attributes
    ----------
    dataset, kind
        Name of the ingested log, and one of ``KINDS``: another table of the same two replaces this one.
    command
        What measures it again.
    of
        What the figures are of, in words.
    rows
        Figures by column: the first of each row is its name, the others are shares or ROC-AUCs.
    """

    dataset: str
    kind: str
    command: str
    of: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Print and keep what the figures are of."""
        print(text, flush=True)
        self.of.append(text)

    def row(self, figures: Mapping[str, Any]) -> None:
        """Print and keep a row.

        Raises
        ------
        ValueError
            If it has other columns than the rows before.
        """
        if self.rows and list(self.rows[0]) != list(figures):
            raise ValueError(f"A row of {list(figures)} is not one of {list(self.rows[0])}.")
        lines = markdown([dict(figures)])
        print("\n".join(lines if not self.rows else lines[2:]), flush=True)
        self.rows.append(dict(figures))

    def write(self, path: Path = RESULTS) -> None:
        """Keep the table in place of what was known of the same kind on the same log."""
        if self.kind not in KINDS:
            raise ValueError(f"'{self.kind}' is not one of {', '.join(KINDS)}.")
        known = read(path)
        known.setdefault(self.dataset, {})[self.kind] = {"command": self.command, "of": self.of, "rows": self.rows}
        ordered = {name: dict(sorted(known[name].items())) for name in sorted(known)}
        with replacing(path) as staged:
            staged.write_text(json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        print(f"Written to {path}; the pages are made again by `python -m benchmarks.quality_tables`.")


def read(path: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return all tables by log and kind; none where there is no file yet."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: ROC-AUCs to four places, all other numbers as percent."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return lines + ["| " + " | ".join(_cell(name, value) for name, value in row.items()) + " |" for row in rows]


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if "ROC-AUC" in name else f"{value:.1%}"


def command_line(home: Path) -> str:
    """Return how this process was called, as one would call it beside the home folder."""
    told = [home.name if Path(word) == home else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *told])
