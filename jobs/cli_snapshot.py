"""The commands about single snapshots: check, list, accept, discard."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.cli_output import HOME, HomeOption, open_home, print_table, progress_reporter, read_moment, say_next

if TYPE_CHECKING:
    from feature_repo.contracts.types import Verdict

REFUSED = 3

app = typer.Typer(help="Check any file as a snapshot, list snapshots, overrule or discard refused ones.")

IdArgument = Annotated[str, typer.Argument(help="Id of a refused snapshot; `headwater snapshot list` has them.")]
ByOption = Annotated[str | None, typer.Option("--by", help="Your name; that of your account by default.")]


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Any Parquet file.")],
    version: Annotated[str, typer.Option(help="Version whose snapshot it claims to be, e.g. v1.")],
    as_of: Annotated[str, typer.Option(help="Moment that it claims to describe (UTC).")],
    entity: Annotated[
        Literal["user", "item"] | None, typer.Option(help="Whose vectors; by default the file's id column says it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Hold a file against a version's history, without publishing anything. Exit code 0: accepted, 3: refused.

    Example: `headwater snapshot check vectors.parquet --version v1 --as-of 2017-12-24`
    """
    from jobs import snapshot as job

    verdict = job.check(open_home(home), file, version, read_moment(as_of), entity=entity, progress=progress_reporter())
    if as_json:
        typer.echo(json.dumps(verdict.to_dict(), indent=2))
    else:
        _print(verdict)
    if not verdict.accepted:
        raise typer.Exit(REFUSED)


def _print(verdict: Verdict) -> None:
    def result(passed: bool, severity: str) -> str:
        return "passed" if passed is True else "FAILED" if severity == "critical" else "warning"

    print_table(
        [
            {
                "check": check.name,
                "result": result(check.passed, check.severity),
                "value": f"{check.observed:.6g}" if isinstance(check.observed, float) else str(check.observed),
                "bound": check.bound,
                "a failure means": check.detail,
            }
            for check in verdict.checks
        ]
    )
    failed = ", ".join(check.name for check in verdict.failures())
    reason = f": {failed or verdict.error}" if not verdict.accepted else ""
    typer.echo(f"\n{'accepted' if verdict.accepted else 'refused'}{reason}")


@app.command("list")
def list_snapshots(
    view: Annotated[str | None, typer.Option(help="Only this view, e.g. user_embedding_v1.")] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Only those that the gate refused.")] = False,
    home: HomeOption = HOME,
) -> None:
    """List snapshots with what became of them.

    Example: `headwater snapshot list --refused`
    """
    from jobs import snapshot as job

    rows = [row for row in job.rows(open_home(home), view) if not refused or row["refused by"] != "-"]
    if rows:
        print_table(rows)
    else:
        typer.echo("none")


@app.command()
def accept(
    snapshot_id: IdArgument,
    why: Annotated[str, typer.Option(help="Why the gate is wrong; recorded.")],
    by: ByOption = None,
    home: HomeOption = HOME,
) -> None:
    """Publish a refused snapshot on your word, recorded with your name and reason.

    Example: `headwater snapshot accept user_embedding_v1-20171224T000000Z --why "the sale of the year"`
    """
    from jobs import snapshot as job

    name = by or getpass.getuser()
    done = job.accept(open_home(home), snapshot_id, by=name, why=why, now=datetime.now(UTC))
    typer.echo(f"{snapshot_id} is published, accepted by {name}: {home / done.path}")
    say_next(home, "materialize")


@app.command()
def discard(
    snapshot_id: IdArgument,
    why: Annotated[str, typer.Option(help="Recorded beside your name.")] = "",
    by: ByOption = None,
    home: HomeOption = HOME,
) -> None:
    """Remove a refused snapshot's rows from quarantine; its verdict stays on record.

    Example: `headwater snapshot discard user_embedding_v1-20171224T000000Z`
    """
    from jobs import snapshot as job

    name = by or getpass.getuser()
    job.discard(open_home(home), snapshot_id, by=name, why=why, now=datetime.now(UTC))
    typer.echo(f"{snapshot_id} is discarded by {name}. Refresh its moment again when the cause is mended.")
