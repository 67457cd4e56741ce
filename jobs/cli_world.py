"""The command that makes a world with known truth: simulate."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli_output import print_table, progress_reporter

app = typer.Typer()


@app.command()
def simulate(
    users: Annotated[int, typer.Option(help="Users, those that join later included.")],
    items: Annotated[int, typer.Option(help="Items ever on sale; a part of them at a time.")],
    days: Annotated[int, typer.Option(help="Days of the log, from 2024-01-01 on; `headwater run` needs 45 or more.")],
    out: Annotated[Path, typer.Option(help="Folder of the log and of the truth beside it.")],
    seed: Annotated[int, typer.Option(help="The same seed and sizes make the same files, to the byte.")] = 0,
    impressions: Annotated[int | None, typer.Option(help="About so many in all; two per user and day.")] = None,
) -> None:
    """Write the log of an ads marketplace whose true probabilities are known. Killed, run it again: it goes on.

    Example: `headwater simulate --users 5000 --items 2000 --days 60 --impressions 300000 --out world`
    """
    from jobs import simulate as job
    from jobs.world import config

    world = config.checked(users=users, items=items, days=days, seed=seed, impressions=impressions)
    result = job.run(world, out, progress=progress_reporter())
    summary = result.summary
    print_table([{"event type": kind, "rows": f"{count:,}"} for kind, count in summary["counts"].items()])
    speed = f" at {result.rows_per_s:,.0f} impressions/s" if result.rows_per_s else ""
    kept = days - result.days_made
    new_home = shlex.quote(f"{out}-home")

    def quoted(name: str) -> str:
        return shlex.quote(str(out / name))

    typer.echo(
        f"World {summary['world']}: {result.days_made} days written{speed}, {kept} were there already "
        f"({summary['event_bytes'] / 1e6:,.1f} MB of events).\n"
        f"CTR {summary['ctr']:.2%}, {summary['conversions_per_click']:.2%} conversions per click.\n"
        f"Next: headwater ingest parquet --name world --events {quoted('events')} --users {quoted('users.parquet')} "
        f"--items {quoted('items.parquet')} --home {new_home}"
    )
    if days < job.SHORTEST_RUN_DAYS:
        typer.echo(f"That is all: {days} days are too few for `headwater run`, which needs {job.SHORTEST_RUN_DAYS}.")
    else:
        typer.echo(f"then: headwater run --home {new_home} --config {quoted('config.yaml')}")
