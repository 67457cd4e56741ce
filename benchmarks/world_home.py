"""The command line of what measures a home folder beside the world whose log it holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.world_records import Measured, command_line
from jobs.workspace import Workspace
from jobs.world.config import WorldConfig, checked

# Of the world of docs/results.md.
WORLD = {"users": 10_000, "items": 3000, "days": 120, "impressions": 5_500_000, "seed": 5}


def opened(parser: argparse.ArgumentParser, kind: str) -> tuple[Workspace, WorldConfig, Measured, dict[str, Any]]:
    """Parse `--home` and the settings of a world beside what a parser has.

    Returns
    -------
    tuple
        Home folder, world, a table of this kind to write into, and the rest of what was parsed.
    """
    parser.add_argument("--home", type=Path, required=True, help="home folder after `headwater run`")
    for name, value in WORLD.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of the world, as simulated; {value}")
    chosen = vars(parser.parse_args())
    home = chosen.pop("home")
    ws = Workspace.open(home)
    ws.use_threads()
    table = Measured(ws.log.record.name, kind, command_line(home))
    return ws, checked(**{name: chosen.pop(name) for name in WORLD}), table, chosen
