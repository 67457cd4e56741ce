"""The commands that bring an event log into the lake: ingest parquet, complete-journey."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli_output import HOME, HomeOption, open_home, print_table, progress_reporter, quiet, say_next

app = typer.Typer(help="Bring an event log into the lake.", no_args_is_help=True)


@app.command("parquet")
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


@app.command("complete-journey")
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
    from feature_repo.contracts.errors import ConfigError

    record = result.dataset
    print_table([{"event type": kind, "rows": f"{count:,}"} for kind, count in sorted(record.counts.items())])
    for reason, count in record.quarantined.items():
        typer.echo(f"quarantined {count:,} rows: {reason}")
    for note in record.notes:
        typer.echo(f"note: {note}")
    state = "was there already" if result.unchanged else "is in the lake"
    typer.echo(f"{record.name} ({record.fingerprint[:12]}) {state}: {home / 'lake'}")
    try:
        ws = open_home(home)
        for upstream in ws.config.upstreams:
            ws.check_length(upstream)
    except ConfigError as error:
        typer.echo(f"Before `headwater run`: {error}")
    else:
        say_next(home, "run")
