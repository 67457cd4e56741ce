"""What every command shares: opening a home folder, reading moments, telling progress, printing tables."""

from __future__ import annotations

import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jobs.workspace import Progress, Workspace

HomeOption = Annotated[Path, typer.Option("--home", envvar="HEADWATER_HOME", help="Folder that holds everything.")]
HOME = Path(".headwater")


def progress_reporter() -> Progress:
    """Return a reporter for stderr: one live line on a terminal, one line per step or ten seconds elsewhere."""
    live = sys.stderr.isatty()
    started = time.monotonic()
    last_stage, last_time = "", 0.0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last_stage, last_time
        stage, now = what.split(":")[0], time.monotonic()
        if not (stage != last_stage or now - last_time > (0.2 if live else 10) or done == total):
            return
        last_stage, last_time = stage, now
        line = f"[{now - started:6.1f} s] {what}" + (f"  {done}/{total}" if total > 1 else "")
        if live:
            line = "\r\x1b[2K" + line[: shutil.get_terminal_size().columns - 1]  # a second line would stay
        typer.echo(line, err=True, nl=not live or done == total)

    return tell


def open_home(home: Path) -> Workspace:
    """Open a home folder for one command."""
    from jobs.workspace import Workspace

    quiet()
    return Workspace.open(home)


def quiet() -> None:
    """Silence what libraries say to their own developers."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="(feast|ibis|pydantic)")
    logging.getLogger("feast").setLevel(logging.ERROR)


def read_moment(text: str) -> datetime:
    """Read a moment; without a time zone it is UTC. ConfigError if it is none."""
    from feature_repo.contracts.errors import ConfigError

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"'{text}' is no time: write it as 2017-08-06T00:00:00+00:00 or 2017-08-06.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def print_table(rows: list[dict[str, str]], title: str = "") -> None:
    """Print rows as a table, in full width where nobody's terminal sets one."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in rows[0] if rows else []:
        table.add_column(name)
    for row in rows:
        table.add_row(*row.values())
    # A pipe has no width; a narrow default would cut the numbers.
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table)
