"""The commands from a log to vectors that are read: train-upstream, refresh, backfill, apply, materialize."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from jobs.cli_output import HOME, HomeOption, open_home, progress_reporter, read_moment

app = typer.Typer()


@app.command("train-upstream")
def train_upstream(
    versions: Annotated[list[str], typer.Argument(help="Versions that the trained spaces get, e.g. v1 v2.")],
    ranks: Annotated[int | None, typer.Option(help="Processes that share out each training on this machine.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Train upstream models before their cut-off, side by side, and register the space that each spans.

    Example: `headwater train-upstream v1 v2`, or one training in several processes
    `headwater train-upstream v1 --ranks 2`, which is `torchrun --nproc-per-node 2 -m jobs.cli train-upstream v1`
    """
    from jobs import train_ranks
    from jobs import train_upstream as job
    from models import ranks as ranks_of_torchrun

    ws = open_home(home)
    if ranks is not None:
        train_ranks.launch(ranks, ["train-upstream", *versions, "--home", str(home)])
    # A rank but the first has nothing to report: run_all returns None there.
    run_all = train_ranks.run_all if ranks_of_torchrun.launched() else job.run_all
    results = run_all(ws, versions, progress=progress_reporter())
    for result in results.trained if results else ():
        new = f"with the weights of {result.weights_of}" if result.weights_of else f"trained on {result.rows:,} rows"
        state = "was trained already" if result.reused else new
        typer.echo(f"{result.version} is space {result.space.space_id} ({result.space.dim} floats), {state}.")


@app.command()
def refresh(
    version: Annotated[str, typer.Argument(help="Version to refresh, e.g. v1.")],
    as_of: Annotated[str, typer.Option(help="Only events before this moment are read (UTC).")],
    home: HomeOption = HOME,
) -> None:
    """Compute, smooth, check and publish a version's vectors as of one moment. Exit code 3: refused.

    Example: `headwater refresh v1 --as-of 2017-12-24`
    """
    from jobs import refresh as job

    _published(job.run(open_home(home), version, read_moment(as_of), progress=progress_reporter()).publications)


@app.command()
def backfill(
    start: Annotated[str | None, typer.Option(help="First moment (UTC); the upstream cut-off by default.")] = None,
    end: Annotated[str | None, typer.Option(help="End (UTC); the end of the log by default.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Publish counts and vectors of all versions for every scheduled moment of a period.

    Example: `headwater backfill --start 2017-07-16 --end 2017-10-01`
    """
    from jobs import backfill as job

    moments = [None if text is None else read_moment(text) for text in (start, end)]
    result = job.run(open_home(home), moments[0], moments[1], progress=progress_reporter())
    _published(result.publications)
    for version, reason in result.idle.items():
        typer.echo(f"{version}: no moment was due. {reason}")


def _published(publications: Any) -> None:
    new = [publication for publication in publications if not publication.reused]
    for publication in new[-8:]:
        snapshot = publication.snapshot
        typer.echo(f"{snapshot.snapshot_id}: {snapshot.rows:,} rows, accepted in {publication.gate_seconds:.2f} s")
    typer.echo(f"{len(new)} snapshots published, {len(publications) - len(new)} were there already.")


@app.command()
def apply(home: HomeOption = HOME) -> None:
    """Register the ledger's views and the consumers' services with Feast.

    Example: `headwater apply`
    """
    from jobs import apply as job

    result = job.run(open_home(home), progress=progress_reporter())
    typer.echo(f"views: {', '.join(result.views)}\nservices: {', '.join(result.services)}")


@app.command()
def materialize(
    end: Annotated[str | None, typer.Option(help="Load what was available up to here (UTC); all by default.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Load all anew: for a store that lost what it had.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Load the latest published rows into the online store.

    Example: `headwater materialize`, or `headwater materialize --again` after a Redis came back empty
    """
    from jobs import materialize as job

    ws = open_home(home)
    moment = job.last_available(ws, datetime.now(UTC)) if end is None else read_moment(end)
    result = job.run(ws, moment, again=again, progress=progress_reporter())
    typer.echo(f"{len(result.views)} views are online up to {result.end:%Y-%m-%d %H:%M} UTC ({result.seconds:.1f} s).")
