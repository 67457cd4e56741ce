"""The commands about versions: register, list, show, retire, prune, compare, bridge."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from jobs.cli_output import HOME, HomeOption, open_home, print_table, progress_reporter, read_moment

app = typer.Typer(help="Versions that live side by side: register, compare, bridge, retire, prune.")

VersionArgument = Annotated[str, typer.Argument(help="Version, e.g. v1.")]


@app.command()
def register(
    space: Annotated[str | None, typer.Option(help="A trained space that has no version yet.")] = None,
    like: Annotated[str | None, typer.Option(help="Train a new space with this version's settings.")] = None,
    train_end: Annotated[str | None, typer.Option(help="With --like: train on what was before (UTC).")] = None,
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
    typer.echo(f"{version} {state}: space {identity}\nNext: headwater backfill, headwater apply, headwater materialize")


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
    version: Annotated[str | None, typer.Argument(help="Version; all by default.")] = None,
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
