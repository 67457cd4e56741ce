"""The command line: reads options, calls one job, prints its result, chooses the exit code. Nothing else."""

from __future__ import annotations

import atexit
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs import cli_care, cli_plan, cli_release, cli_serve, cli_snapshot, cli_versions, cli_world
from jobs.cli_output import (
    HOME,
    HomeOption,
    open_home,
    print_lift,
    print_table,
    progress_reporter,
    quiet,
    read_moment,
)

app = typer.Typer(
    name="headwater",
    help="Learn user and item embeddings, refresh them on a schedule, check them, version them, feed rankers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
ingest_app = typer.Typer(help="Bring an event log into the lake.", no_args_is_help=True)
app.add_typer(ingest_app, name="ingest")
app.add_typer(cli_snapshot.app, name="snapshot")
app.add_typer(cli_versions.app, name="version")
app.add_typer(cli_release.app, name="release")
app.add_typer(cli_serve.app)
app.add_typer(cli_care.app)
app.add_typer(cli_world.app)
app.add_typer(cli_plan.app)


def main() -> None:
    """Run the command line; errors meant for a person are printed as one message, with their exit code."""
    from feature_repo.contracts.errors import HeadwaterError

    if os.getloadavg()[0] > 0.9 * (os.cpu_count() or 1):
        # Others use this machine, too: waiting threads sleep, for spinning would make training ten times slower.
        # On an idle one sleeping costs a third. OpenMP reads this once, before torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code: Any = 0
    try:
        app()
    except SystemExit as ended:
        code = ended.code
    except HeadwaterError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        typer.secho("stopped; run the same command again to go on from here", err=True)
        code = 130
    sys.stdout.flush()
    sys.stderr.flush()
    if "duckdb" in sys.modules:
        # DuckDB's bindings print a page of "leaked" objects when ibis still holds a connection at exit.
        atexit._run_exitfuncs()
        os._exit(code if isinstance(code, int) else int(bool(code)))
    raise SystemExit(code)


@app.callback()
def options(
    profile: Annotated[
        str | None, typer.Option(help="Stores to work with, a file of feature_repo/profiles: redis, spark ...")
    ] = None,
) -> None:
    """Choose what holds for every command."""
    if profile is not None:
        os.environ["HEADWATER_PROFILE"] = profile


@app.command()
def demo(
    home: HomeOption = HOME,
    households: Annotated[int | None, typer.Option(help="Take only so many households (all 2,469 by default).")] = None,
) -> None:
    """Run the main job on real data: the 84.51° Complete Journey, from log to lift table.

    Example: `headwater demo`
    """
    from jobs import demo as job

    quiet()
    _finish(job.run(home, households=households, progress=progress_reporter()), home)


@app.command()
def run(
    home: HomeOption = HOME,
    config: Annotated[Path | None, typer.Option(help="Settings to store as HOME/config.yaml first.")] = None,
) -> None:
    """Run every stage after ingest, in order, on the log that lies in the home folder.

    Example: `headwater run --home mine --config mine.yaml`
    """
    from feature_repo.lake import Home
    from jobs import chain
    from jobs import config as settings

    if config is not None:
        settings.save(settings.read(config), Home(home.resolve()))
    _finish(chain.run(open_home(home), progress=progress_reporter()), home)


def _finish(result: Any, home: Path) -> None:
    print_lift(result.summary)
    for skip in result.skipped:
        typer.echo(f"\nskipped {skip['task']}: {skip['why']}")
    seconds = result.summary["timings_s"].get("total", 0.0)
    gate = result.summary["gate"]
    if result.served is not None:
        _served(result.served)
    typer.echo(f"\n{gate['accepted']} snapshots accepted, {gate['refused']} refused; stages took {seconds:.0f} s.")
    typer.echo(f"Report:  {result.report.path}\nNumbers: {home / 'reports' / 'summary.json'}")


def _served(served: Any) -> None:
    best, audit = served.answer["items"][0], served.audit
    scores = ", ".join(f"{name} {value:.4f}" for name, value in best.items() if name != "item_id")
    typer.echo(
        f"\nServed over HTTP by release {served.release}: item {best['item_id']} first ({scores}), "
        f"{served.milliseconds:.0f} ms.\nAudit: {audit.rows_exact:,} of {audit.rows:,} served rows are exactly what "
        f"training reads{'' if audit.passed else '; SKEWED'}: {audit.path}"
    )


@ingest_app.command("parquet")
def ingest_parquet(
    events: Annotated[list[str], typer.Option(help="Parquet or CSV file, folder or glob; may be repeated.")],
    users: Annotated[list[str] | None, typer.Option(help="User attributes.")] = None,
    items: Annotated[list[str] | None, typer.Option(help="Item attributes.")] = None,
    name: Annotated[str, typer.Option(help="What people call the data set.")] = "events",
    max_bad_rows: Annotated[int, typer.Option(help="Bad rows to quarantine instead of refusing all.")] = 0,
    click_days: Annotated[float, typer.Option(help="Longest time from an impression to its click.")] = 7,
    conversion_days: Annotated[float, typer.Option(help="Longest time from a click to its conversion.")] = 30,
    replace: Annotated[bool, typer.Option("--replace", help="Drop another data set of this home folder.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Check one's own log and store it in the lake; all or nothing.

    Example: `headwater ingest parquet --events log.parquet --users users.csv --items items.csv --home mine`
    """
    from jobs import ingest

    quiet()
    config = ingest.IngestConfig(
        home=home.resolve(),
        name=name,
        events=tuple(events),
        users=tuple(users or ()),
        items=tuple(items or ()),
        now=datetime.now(UTC),
        max_bad_rows=max_bad_rows,
        click_window=timedelta(days=click_days),
        conversion_window=timedelta(days=conversion_days),
        replace=replace,
    )
    tell = progress_reporter()
    result = ingest.run(config, progress=lambda what: tell(what, 1, 1))
    _ingested(result, home)


@ingest_app.command("complete-journey")
def ingest_complete_journey(
    home: HomeOption = HOME,
    households: Annotated[int | None, typer.Option(help="Take only so many households.")] = None,
) -> None:
    """Make the demo's impression log from the Complete Journey and store it (needs the extra `demo`).

    Example: `headwater ingest complete-journey --home demo`
    """
    from jobs import demo as job

    quiet()
    _ingested(job.ingest_journey(home.resolve(), households=households, progress=progress_reporter()), home)


def _ingested(result: Any, home: Path) -> None:
    record = result.dataset
    print_table([{"event type": kind, "rows": f"{count:,}"} for kind, count in sorted(record.counts.items())])
    for reason, count in record.quarantined.items():
        typer.echo(f"quarantined {count:,} rows: {reason}")
    for note in record.notes:
        typer.echo(f"note: {note}")
    state = "was there already" if result.unchanged else "is in the lake"
    typer.echo(f"{record.name} ({record.fingerprint[:12]}) {state}: {home / 'lake'}\nNext: headwater run --home {home}")


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

    if ranks is not None:
        train_ranks.launch(ranks, ["train-upstream", *versions, "--home", str(home)])
    # A rank but the first has nothing to report: run_all returns None there.
    run_all = train_ranks.run_all if ranks_of_torchrun.launched() else job.run_all
    results = run_all(open_home(home), versions, progress=progress_reporter())
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
    _published(job.run(open_home(home), moments[0], moments[1], progress=progress_reporter()).publications)


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


@app.command("training-set")
def training_set(
    name: Annotated[str | None, typer.Argument(help="Consumer whose FeatureService is joined.")] = None,
    service: Annotated[str | None, typer.Option(help="The same, as an option.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Parquet file, folder or glob of labels; the log's own by default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; in the home folder by default.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Join labels with a consumer's features as they were known at each label's time.

    Example: `headwater training-set ctr_ranker`, or with labels of one's own
    `headwater training-set --service ctr_ranker --labels labels.parquet --out joined`
    """
    from feature_repo.contracts.errors import ConfigError
    from jobs import training_set as job

    chosen = service or name
    if chosen is None or (service and name and service != name):
        raise ConfigError("Name one consumer: `headwater training-set ctr_ranker` or `--service ctr_ranker`.")
    if labels is not None and out is None:
        raise ConfigError("Labels of one's own need a folder of their own: add `--out DIR`.")
    result = job.run(open_home(home), chosen, labels=labels, out=out, progress=progress_reporter())
    manifest = result.manifest
    speed = f", {manifest['rows_per_s']:,.0f} rows/s" if manifest["rows_per_s"] else ""
    typer.echo(f"{manifest['rows']:,} rows, {manifest['leaks']} leaks{speed}: {result.folder}")
    print_table([{"view": view, "hit rate": f"{rate:.4f}"} for view, rate in manifest["hit_rates"].items()])


@app.command("train-downstream")
def train_downstream(
    consumer: Annotated[str, typer.Argument(help="Consumer to train, e.g. ctr_ranker, cvr_ranker, retrieval.")],
    home: HomeOption = HOME,
) -> None:
    """Train a consumer with and without each embedding group, over several seeds.

    Example: `headwater train-downstream ctr_ranker`
    """
    from jobs import retrieve
    from jobs import train_downstream as job

    ws = open_home(home)
    chosen = retrieve.run if ws.config.consumer(consumer).task == "retrieval" else job.run
    result: Any = chosen(ws, consumer, progress=progress_reporter())
    typer.echo(f"{consumer} {'was trained already' if result.reused else 'is trained'}: {result.folder}")


@app.command()
def evaluate(
    truth: Annotated[
        Path | None,
        typer.Option(help="Folder of true probabilities: adds the share of the possible gain. From config.yaml."),
    ] = None,
    table: Annotated[
        Literal["lift", "paper", "groups"],
        typer.Option(help="paper: beside the published lifts, corrected for their number. groups: by sub-group."),
    ] = "lift",
    home: HomeOption = HOME,
) -> None:
    """Compute the lift table on the test period and write the summary and the report.

    Example: `headwater evaluate`, or `headwater evaluate --table paper`, or for a simulated log
    `headwater evaluate --truth world/truth`
    """
    from jobs import evaluate as job
    from jobs import evaluate_groups, evaluate_paper, report

    ws = open_home(home)
    result = job.run(ws, truth=truth, progress=progress_reporter())
    if table == "paper":
        print_table(evaluate_paper.table(result.summary), "\nThe paper's rows, test period")
        for note in evaluate_paper.notes(result.summary):
            typer.echo(note)
    elif table == "groups":
        print_table(evaluate_groups.table(result.summary["groups"]), "\nLift by sub-group, test period")
    else:
        print_lift(result.summary)
    typer.echo(f"\nReport:  {report.run(ws.home.root).path}\nNumbers: {result.path}")


@app.command()
def docs(
    snapshot: Annotated[list[str] | None, typer.Option(help="Write only this one's page; may be repeated.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Write the gate's pages: one per snapshot, an index of all refreshes, and Data Docs. They open offline.

    Example: `headwater docs`
    """
    from jobs import docs as job

    result = job.run(open_home(home), datetime.now(UTC), only=snapshot, progress=progress_reporter())
    typer.echo(f"{result.pages} pages: {result.path}")


@app.command()
def status(home: HomeOption = HOME) -> None:
    """Show data, spaces, versions, snapshots with their freshness, and consumers.

    Example: `headwater status`
    """
    from jobs import status as job

    for title, rows in job.run(open_home(home), datetime.now(UTC)).tables.items():
        if rows:
            print_table(rows, f"\n{title}")
        else:
            typer.echo(f"\n{title}: none yet")


if __name__ == "__main__":
    main()
