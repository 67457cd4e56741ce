"""The command line of what measures a home folder beside the world whose log it holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jobs.workspace import Workspace
from jobs.world.config import WorldConfig, checked

# Of the world of docs/results.md.
WORLD = {"users": 10_000, "items": 3000, "days": 120, "impressions": 5_500_000, "seed": 5}


def opened(parser: argparse.ArgumentParser) -> tuple[Workspace, WorldConfig, dict[str, Any]]:
    """Parse `--home` and the settings of a world beside what a parser has: home folder, world, and the rest."""
    parser.add_argument("--home", type=Path, required=True, help="home folder after `headwater run`")
    for name, value in WORLD.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"of the world, as simulated; {value}")
    chosen = vars(parser.parse_args())
    ws = Workspace.open(chosen.pop("home"))
    ws.use_threads()
    return ws, checked(**{name: chosen.pop(name) for name in WORLD}), chosen
