"""The commands that look after a home folder: docs, status, doctor, lineage."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

import typer

from jobs.cli_output import HOME, HomeOption, open_home, print_table, progress_reporter

app = typer.Typer()


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


@app.command()
def doctor(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be mended.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Check everything on disk against the ledger, mend what can be mended, name the rest. Exit code 1: work is left.

    Example: `headwater doctor`
    """
    from jobs import doctor as job

    result = job.run(open_home(home), dry_run=dry_run, progress=progress_reporter())
    if not result.findings:
        typer.echo("Everything is as it should be.")
        return
    state = {True: "would mend" if dry_run else "mended", False: "YOURS TO DO"}
    for finding in result.findings:
        typer.echo(f"{state[finding.mended]}: {finding.what}\n    {finding.remedy}")
    left = sum(not finding.mended for finding in result.findings)
    typer.echo(f"{len(result.findings)} findings, {left} of them for you.")
    if left:
        raise typer.Exit(1)


@app.command()
def lineage(
    name: Annotated[
        str,
        typer.Argument(help="Name or path of any artifact, or the beginning of a log's fingerprint."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="OpenLineage events of everything involved.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Show what something was made from, and what was made of it.

    Example: `headwater lineage user_embedding_v1-20171224T000000Z`
    """
    from jobs import lineage as job

    graph = job.graph(open_home(home))
    if as_json:
        typer.echo(json.dumps(job.openlineage(graph, name), indent=2))
        return
    for title, rows in job.rows(graph, name).items():
        if rows:
            print_table(rows, f"\n{title}")
        else:
            typer.echo(f"\n{title}: nothing")
