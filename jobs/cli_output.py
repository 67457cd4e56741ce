"""What every command shares: opening a home folder, reading moments, telling progress, printing tables."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from feature_repo.lake import Home
    from jobs.workspace import Progress, Workspace

HomeOption = Annotated[Path, typer.Option("--home", envvar="HEADWATER_HOME", help="Folder that holds everything.")]
HOME = Path(".headwater")


def say_next(home: Path, *commands: str) -> None:
    """Say which commands come next, with --home where they would take another home folder without it."""
    taken = Path(os.environ.get("HEADWATER_HOME") or HOME)
    option = "" if home == taken else f" --home {shlex.quote(str(home))}"
    typer.echo("Next: " + ", ".join(f"headwater {command}{option}" for command in commands))


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
    """Open a home folder for one command; ConfigError if there is none."""
    from jobs.workspace import Workspace

    quiet()
    return Workspace.open(begun(home).root)


def begun(home: Path) -> Home:
    """Return a home folder in which something was begun; nothing is made where there is none.

    Raises
    ------
    ConfigError
        If there is no such folder, or it holds neither a ledger nor a lake.
    """
    from feature_repo.contracts.errors import ConfigError
    from feature_repo.lake import Home

    found = Home(home.resolve())
    if found.lake.is_dir() or found.ledger_file.exists():
        return found
    empty = found.root.is_dir()
    why = "holds neither a ledger nor a lake, so it is no home folder" if empty else "does not exist"
    raise ConfigError(
        f"{found.root} {why}. Name another with --home or $HEADWATER_HOME, or begin one there with `headwater demo` or "
        "`headwater ingest parquet --events LOG`."
    )


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


def print_lift(summary: dict[str, Any]) -> None:
    """Print the lift table and the retrieval table of a summary."""
    from jobs.evaluate_paper import sentences_of_few

    oracle = {row["task"]: row for row in summary.get("oracle", [])}
    rows = []
    for row, following in zip_longest(summary["lift"], summary["lift"][1:]):
        rows.append(row)
        if row["task"] in oracle and (following is None or following["task"] != row["task"]):
            rows.append(oracle[row["task"]])
    if rows:
        print_table(
            [
                {
                    "task": row["task"],
                    "embeddings": row["embeddings"],
                    "ROC-AUC": f"{row['auc']:.5f}",
                    "lift": f"{100 * row['relative_auc_lift']:+.3f}%",
                    "95% interval": f"[{100 * row['ci95'][0]:+.3f}%, {100 * row['ci95'][1]:+.3f}%]",
                    "log loss": f"{row['log_loss']:.5f}",
                    "norm. entropy": f"{row['normalized_entropy']:.4f}",
                    "calibration": f"{row['calibration']:.3f}",
                    "seeds": str(row["seeds"]),
                    **(_share(row) if oracle else {}),
                }
                for row in rows
            ],
            "\nLift of ranking, test period",
        )
        for sentence in sentences_of_few(rows):
            print(sentence)
    together = summary.get("together", [])
    if len(together) > len({row["task"] for row in together}):  # of one other row the table above has said enough
        _print_together(together)
    print_retrieval(summary["retrieval"], "\nRetrieval, test period")
    print_retrieval(summary.get("retrieval_by_surface", []), "\nRetrieval by surface, test period")
    before = summary.get("retrieval_validation") or {}
    print_retrieval(before.get("table", []), "\nRetrieval, before the test period (choose settings here)")


def _print_together(rows: list[dict[str, Any]]) -> None:
    print_table(
        [
            {
                "task": row["task"],
                "embeddings": row["embeddings"],
                "against": row["against"],
                "lift": f"{100 * row['relative_auc_lift']:+.3f}%",
                "95% interval": f"[{100 * row['ci95'][0]:+.3f}%, {100 * row['ci95'][1]:+.3f}%]",
            }
            for row in rows
        ],
        "\nAll embeddings together against the other rows, test period",
    )


def _share(row: dict[str, Any]) -> dict[str, str]:
    """Return the share of the possible gain with its interval; the baseline has none and the oracle all of it."""
    share, ends = row.get("share_of_possible_gain"), row.get("share_ci95")
    if share is None or ends is None:
        return {"share of possible gain": "unknown"}
    return {"share of possible gain": f"{share:.1%} [{ends[0]:.1%}, {ends[1]:.1%}]"}


def print_retrieval(rows: list[dict[str, Any]], title: str) -> None:
    """Print recall per model; nothing where there are no rows."""
    if not rows:
        return
    print_table(
        [
            {
                **({"surface": row["surface"]} if "surface" in row else {}),
                "retrieval": row["model"],
                "recall@10": f"{row['recall_at_10']:.4f}",
                "recall@50": f"{row['recall_at_50']:.4f}",
                "recall@100": f"{row['recall_at_100']:.4f}",
                "x popularity at 100": f"{row['ratio_to_popularity_at_100']:.2f}",
                "95% interval": f"[{row['ratio_ci95'][0]:.2f}, {row['ratio_ci95'][1]:.2f}]",
            }
            for row in rows
        ],
        title,
    )
