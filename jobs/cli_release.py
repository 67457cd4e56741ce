"""The commands about releases: create, promote, rollback, drop, list."""

from __future__ import annotations

import getpass
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from jobs.cli_output import HOME, HomeOption, open_home, print_table, progress_reporter, say_next

app = typer.Typer(help="What serving uses, moved as one: consumers, embedding versions, item index, online tables.")

NameArgument = Annotated[str, typer.Argument(help="Release, e.g. r2.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Your name; that of your account by default.")]


@app.command()
def create(
    consumer: Annotated[list[str] | None, typer.Option(help="May be repeated; every trained one by default.")] = None,
    name: Annotated[str | None, typer.Option(help="The next number by default.")] = None,
    description: Annotated[str, typer.Option(help="What is new about it.")] = "",
    home: HomeOption = HOME,
) -> None:
    """Bind trained consumers, their versions and an item index together. Serves nothing yet.

    Example: `headwater release create --consumer ctr_ranker --consumer retrieval`
    """
    from jobs import release as job

    ws, tell = open_home(home), progress_reporter()
    made = job.create(ws, consumer, name=name, description=description, now=datetime.now(UTC), progress=tell)
    spaces = ", ".join(f"{version} ({space})" for version, space in made.versions.items())
    typer.echo(f"{made.name}: {', '.join(made.consumers) or 'no ranker'}; {spaces}")
    say_next(home, f"release promote {made.name}")


@app.command()
def promote(name: NameArgument, by: ByOption = None, home: HomeOption = HOME) -> None:
    """Let serving use a release, once the online store holds its versions' latest snapshots.

    Example: `headwater release promote r2`
    """
    from jobs import release as job

    tell = progress_reporter()
    done = job.promote(open_home(home), name, by=by or getpass.getuser(), now=datetime.now(UTC), progress=tell)
    typer.echo(f"{name} is live" + (f", {done.before} was before." if done.changed and done.before else "."))


@app.command()
def rollback(
    to: Annotated[str | None, typer.Option(help="Release to go back to; the one before by default.")] = None,
    by: ByOption = None,
    home: HomeOption = HOME,
) -> None:
    """Let serving use the release before again. One write, nothing is computed.

    Example: `headwater release rollback`
    """
    from jobs import release as job

    started = time.perf_counter()
    done = job.rollback(open_home(home), to, by=by or getpass.getuser(), now=datetime.now(UTC))
    seconds = time.perf_counter() - started
    word = f"{done.before} was before" if done.changed else "it was live already"
    typer.echo(f"{done.release.name} is live, {word} ({seconds:.3f} s).")


@app.command()
def drop(name: NameArgument, by: ByOption = None, home: HomeOption = HOME) -> None:
    """Give up a release that is not live, so that its versions can be retired. Its record stays.

    Example: `headwater release drop r1`
    """
    from jobs import release as job

    job.drop(open_home(home), name, by=by or getpass.getuser(), now=datetime.now(UTC))
    typer.echo(f"{name} is dropped.")


@app.command("list")
def list_releases(
    history: Annotated[bool, typer.Option("--history", help="Every move instead, oldest first.")] = False,
    home: HomeOption = HOME,
) -> None:
    """List releases, or the history of what was live.

    Example: `headwater release list --history`
    """
    from feature_repo import releases
    from jobs import release as job

    ws = open_home(home)
    rows = job.rows(ws)
    if history:
        rows = [
            {"when": f"{move.at:%Y-%m-%d %H:%M:%S}", "action": move.action, "release": move.release, "by": move.by}
            for move in releases.history(ws.ledger)
        ]
    if rows:
        print_table(rows)
    else:
        typer.echo("none yet")
