"""The commands about versions: register, list, show, retire, prune, compare, bridge."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli_output import HOME, HomeOption, open_home, print_table, progress_reporter, read_moment, say_next

app = typer.Typer(help="Versions that live side by side: register, compare, bridge, retire, prune.")

VersionArgument = Annotated[str, typer.Argument(help="Version, e.g. v1.")]


@app.command()
def register(
    space: Annotated[str | None, typer.Option(help="A trained space that has no version yet.")] = None,
    like: Annotated[str | None, typer.Option(help="Train a new space with this version's settings.")] = None,
    train_end: Annotated[str | None, typer.Option(help="With --like: train on what was before (UTC).")] = None,
    warm_start: Annotated[
        bool, typer.Option("--warm-start", help="With --like: go on from its weights; the gate says if it stays it.")
    ] = False,
    alignment: Annotated[float | None, typer.Option(help="With --warm-start: weight of staying near; 10.")] = None,
    name: Annotated[str | None, typer.Option(help="The version's name; the next number by default.")] = None,
    description: Annotated[str, typer.Option(help="What is new about it.")] = "",
    owner: Annotated[str, typer.Option(help="Who answers for it.")] = "upstream team",
    home: HomeOption = HOME,
) -> None:
    """Make a space the next version: a retrain of another version's model, or a space that is trained already.

    Example: `headwater version register --like v1 --train-end 2017-10-01`
    """
    from feature_repo.contracts.errors import ConfigError
    from jobs import versions as job

    if (space is None) == (like is None) or (like is None) != (train_end is None):
        raise ConfigError("Say either --space ID, or --like VERSION with --train-end TIME.")
    if alignment is not None and not warm_start:
        raise ConfigError("--alignment needs --warm-start.")
    if warm_start:
        if like is None or train_end is None:
            raise ConfigError("--warm-start goes with --like VERSION and --train-end TIME.")
        _warm_start(home, like, read_moment(train_end), alignment, name, description)
        return
    ws = open_home(home)
    if space is not None:
        done = job.register(ws, space, name=name, description=description, owner=owner)
        version, identity, reused = done.version.version, done.version.space_id, done.reused
    else:
        assert like is not None and train_end is not None
        tell = progress_reporter()
        trained = job.retrain(ws, like, read_moment(train_end), name=name, description=description, progress=tell)
        version, identity, reused = trained.version, trained.space.space_id, trained.reused
    state = "was registered already" if reused else "is registered"
    typer.echo(f"{version} {state}: space {identity}")
    say_next(home, "backfill", "apply", "materialize")


def _warm_start(
    home: Path, like: str, train_end: datetime, alignment: float | None, name: str | None, description: str
) -> None:
    from jobs import warm_start as job

    weight = job.ALIGNMENT if alignment is None else alignment
    tell = progress_reporter()
    ws = open_home(home)
    result = job.run(ws, like, train_end, alignment=weight, name=name, description=description, progress=tell)
    if result.continues is not None:
        typer.echo(
            f"The gate finds {result.space.space_id} in the space of {like}: it refreshes {like} from "
            f"{train_end:%Y-%m-%d} on."
        )
        say_next(home, "backfill", "materialize")
        return
    for entity, check in result.reasons():
        typer.echo(f"{entity}s: {check.name} {check.observed} ({check.bound})")
    typer.echo(f"It left the space of {like}: {result.version} is registered, space {result.space.space_id}")
    say_next(home, "backfill", "apply", "materialize")


@app.command("list")
def list_versions(home: HomeOption = HOME) -> None:
    """List versions with their spaces, freshness and users.

    Example: `headwater version list`
    """
    from jobs import versions as job

    rows = job.rows(open_home(home))
    if rows:
        print_table(rows)
    else:
        typer.echo("none yet")


@app.command()
def show(
    version: VersionArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Show everything that is recorded of one version.

    Example: `headwater version show v1`
    """
    from jobs import versions as job

    facts = job.details(open_home(home), version)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        print_table([{"what": name, "value": str(value)} for name, value in facts.items()])


@app.command()
def retire(
    version: VersionArgument,
    why: Annotated[str, typer.Option(help="Recorded beside your name.")] = "replaced",
    by: Annotated[str | None, typer.Option("--by", help="Your name; that of your account by default.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Stop refreshing a version that nobody uses. Refused, and by whom, while a consumer or a release uses it.

    Example: `headwater version retire v1 --why "all consumers read v3"`
    """
    from jobs import versions as job

    done = job.retire(open_home(home), version, by=by or getpass.getuser(), why=why, now=datetime.now(UTC))
    typer.echo(f"{version} is retired since {done.at:%Y-%m-%d %H:%M} by {done.by}: {done.why}")


@app.command()
def prune(
    version: Annotated[str | None, typer.Argument(help="Version; by default all, counts and own choices too.")] = None,
    keep_days: Annotated[int | None, typer.Option(help="Days before the newest to keep; the coverage, 90.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Remove old snapshots that no training set, index or release needs.

    Example: `headwater version prune v1 --dry-run`
    """
    from jobs import versions as job

    keep = None if keep_days is None else timedelta(days=keep_days)
    done = job.prune(open_home(home), version, keep=keep, dry_run=dry_run)
    for snapshot_id in done.removed:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {snapshot_id}")
    for snapshot_id, reason in done.kept.items():
        typer.echo(f"kept {snapshot_id}: {reason} needs it")
    typer.echo(
        f"{len(done.removed)} snapshots {'would be ' if dry_run else ''}removed, {len(done.kept)} old ones kept."
    )


@app.command()
def compare(
    old: Annotated[str, typer.Argument(help="The version that consumers read, e.g. v1.")],
    new: Annotated[str, typer.Argument(help="The retrain, e.g. v3.")],
    as_of: Annotated[str | None, typer.Option(help="Snapshots up to here (UTC); the latest by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Report how stable a retrain is: cosines before and after alignment, neighbours, rank, what old rankers lose.

    Example: `headwater version compare v1 v3`
    """
    from jobs import compare as job

    moment = None if as_of is None else read_moment(as_of)
    result = job.run(open_home(home), old, new, moment, progress=progress_reporter())
    if as_json:
        facts = {"as_of": result.as_of.isoformat(), "entities": result.entities, "consumers": result.consumers}
        typer.echo(json.dumps(facts, indent=2))
        return
    print_table([_plain(row) for row in result.entities], f"\nVectors as of {result.as_of:%Y-%m-%d}, {old} and {new}")
    if result.consumers:
        print_table([_plain(row) for row in result.consumers], f"\nRankers of {old}, fed with vectors of {new}")
    else:
        typer.echo(f"\nNo ranker of {old} has enough labelled rows in the four weeks before {result.as_of:%Y-%m-%d}.")


def _plain(row: dict[str, Any]) -> dict[str, str]:
    return {key: f"{value:.4f}" if isinstance(value, float) else str(value) for key, value in row.items()}


@app.command()
def bridge(
    new: Annotated[str, typer.Argument(help="Version whose model goes on, e.g. v3.")],
    into: Annotated[str, typer.Option(help="Version whose consumers go on reading it, e.g. v1.")],
    as_of: Annotated[str, typer.Option(help="Only events before this moment are read (UTC).")],
    refit: Annotated[bool, typer.Option("--refit", help="Learn the map again from the latest moments.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Publish a new model's vectors in an old version's space, as that version's refresh. Exit code 3: refused.

    Example: `headwater version bridge v3 --into v1 --as-of 2018-01-07`
    """
    from jobs import bridge as job

    result = job.run(open_home(home), new, into, read_moment(as_of), refit=refit, progress=progress_reporter())
    for entity, kind in result.kinds.items():
        scores = ", ".join(f"{name} {value:.4f}" for name, value in result.held_out[entity].items())
        typer.echo(f"{entity}s by the {kind} map; cosine with {into} on held-out {entity}s: {scores}")
        later = ", ".join(f"{name} {value:.4f}" for name, value in result.anchors[entity].items())
        typer.echo(f"  with a share of their own residual, at a later moment: {later}")
    for publication in result.publications:
        state = "was there already" if publication.reused else "accepted"
        typer.echo(f"{publication.snapshot.snapshot_id}: {publication.snapshot.rows:,} rows, {state}")


@app.command()
def rehearse(
    new: Annotated[str, typer.Argument(help="Version whose model would go on, e.g. v3.")],
    into: Annotated[str, typer.Option(help="Version whose rankers would go on reading, e.g. v1.")],
    start: Annotated[str | None, typer.Option("--from", help="First bridged moment; the test period's start.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Try out what giving a model up would mean: bridge every moment in a scratch copy, then score the rankers.

    Changes nothing but `reports/rehearsal-NEW-INTO.json`.

    Example: `headwater version rehearse v3 --into v1`
    """
    from jobs import rehearsal as job

    moment = None if start is None else read_moment(start)
    result = job.run(open_home(home), new, into, moment, progress=progress_reporter())
    if as_json:
        typer.echo(result.path.read_text())
        return
    for row in result.snapshots:
        typer.echo(f"{row['as_of'][:10]}: {row['result']}")
    rows = [
        {
            "ranker, vectors": row["ranker and vectors"],
            "ROC-AUC": f"{row['auc']:.5f}",
            "change": f"{row['lift']:+.3%}",
            "95% interval": f"[{row['ci95'][0]:+.3%}, {row['ci95'][1]:+.3%}]",
            "log loss": f"{row['log_loss']:.5f}",
            "rows": f"{row['rows']:,}",
        }
        for row in result.rankers
    ]
    print_table(
        rows, f"\nTest rows from {result.start:%Y-%m-%d} on; changes against the old ranker with its own vectors"
    )
    typer.echo(f"\n{result.path}")
