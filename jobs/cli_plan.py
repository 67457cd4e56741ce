"""The commands for whoever runs the platform: plan, schedule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from jobs.cli_output import HOME, HomeOption, begun, print_table

app = typer.Typer()
schedule_app = typer.Typer(help="The refresh cycle for the scheduler that you have.", no_args_is_help=True)
app.add_typer(schedule_app, name="schedule")


@app.command()
def plan(
    users: Annotated[str, typer.Option(help="Users with a vector, e.g. 250000, 10M or 1B.")],
    items: Annotated[str, typer.Option(help="Items with a vector.")],
    dim: Annotated[int, typer.Option(help="Floats of a vector.")],
    refreshes: Annotated[int, typer.Option(help="Refreshes within the days; all are kept.")],
    days: Annotated[int, typer.Option(help="Days that are kept.")] = 90,
    versions: Annotated[int, typer.Option(help="Embedding versions refreshed side by side.")] = 1,
    events: Annotated[float, typer.Option(help="Events of a user per day.")] = 5.0,
    train_rows: Annotated[str, typer.Option(help="Samples of an upstream training; one within the days.")] = "100M",
    label_rows: Annotated[str, typer.Option(help="Labels of a training set; one within the days.")] = "100M",
    requests: Annotated[float, typer.Option(help="Served requests per second.")] = 1000.0,
    own_choices: Annotated[
        float, typer.Option(help="Items in the list of a user's own choices, on average; 0: none are published.")
    ] = 100.0,
    cores: Annotated[int, typer.Option(help="Cores over which a refresh is spread.")] = 16,
    machine_memory: Annotated[float, typer.Option(help="Memory of one machine, GB.")] = 256.0,
    machine_disk: Annotated[float, typer.Option(help="Disk of one machine, GB.")] = 8000.0,
    price_storage: Annotated[float, typer.Option(help="Dollars per GB and month of the lake.")] = 0.02,
    price_memory: Annotated[float, typer.Option(help="Dollars per GB and month of the online store.")] = 3.0,
    price_core: Annotated[float, typer.Option(help="Dollars per core hour.")] = 0.04,
    price_network: Annotated[float, typer.Option(help="Dollars per GB moved.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="All figures as JSON.")] = False,
) -> None:
    """Say what so many vectors take in storage, memory, network, time and money, and what breaks first.

    Unit costs are measured; prices and the machine are yours to set (docs/scale.md).

    Example: `headwater plan --users 10M --items 100k --dim 256 --refreshes 90`
    """
    from jobs import capacity

    workload = capacity.Workload(
        users=capacity.read_count(users, "users"),
        items=capacity.read_count(items, "items"),
        dim=dim,
        refreshes=refreshes,
        days=days,
        versions=versions,
        events=events,
        train_rows=capacity.read_count(train_rows, "train-rows"),
        label_rows=capacity.read_count(label_rows, "label-rows"),
        requests=requests,
        own_choices=own_choices,
        machine_memory=machine_memory,
        machine_disk=machine_disk,
        cores=cores,
    )
    found = capacity.run(workload, capacity.Prices(price_storage, price_memory, price_core, price_network))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    for group in dict.fromkeys(line.group for line in found.lines):
        rows = [
            {
                group: line.what,
                "float32": figure(line.float32),
                "int8 steps": "same" if line.int8 == line.float32 else figure(line.int8),
                "unit": line.unit,
                "how": line.how,
            }
            for line in found.lines
            if line.group == group
        ]
        print_table(rows)
        typer.echo("")
    limits = [
        {"breaks at": f"{limit.users:,} users", "": "PASSED" if limit.users < workload.users else ""}
        | {"what": limit.what, "what moves it": limit.knob}
        for limit in found.limits
    ]
    print_table(limits, "One machine and one process, with as many items per user")


def figure(value: float) -> str:
    """Return a figure with three digits that say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


@schedule_app.command("export")
def export(
    kind: Annotated[Literal["cron", "systemd", "airflow"], typer.Option("--as", help="Whose files to write.")],
    out: Annotated[Path, typer.Option(help="Folder of the script and the scheduler's files.")] = Path("schedule"),
    at: Annotated[str, typer.Option(help="Time of every day, UTC.")] = "01:30",
    before: Annotated[str | None, typer.Option(help="Shell command that runs first, e.g. your ingest.")] = None,
    alert: Annotated[
        str | None, typer.Option(help="Shell command for a failure; $HEADWATER_STEP and $HEADWATER_EXIT are set.")
    ] = None,
    audit: Annotated[bool, typer.Option(help="Whether the skew audit of what was served closes the cycle.")] = True,
    attempts: Annotated[int, typer.Option(help="How often a step is tried.")] = 3,
    pause: Annotated[int, typer.Option(help="Seconds between two tries.")] = 300,
    name: Annotated[str, typer.Option(help="Of files, units and DAG: one per home folder.")] = "headwater",
    command: Annotated[Path | None, typer.Option(help="The headwater command; that of this environment.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Write the refresh cycle for a scheduler: backfill (with the gate), apply, materialize, audit.

    Example: `headwater schedule export --as systemd --before "/srv/ingest.sh" --alert "/srv/page.sh" --home mine`
    """
    from jobs import schedule as job

    chosen = job.Schedule(
        home=begun(home).root,
        at=job.read_time(at),
        name=name,
        before=before,
        alert=alert,
        audit=audit,
        attempts=attempts,
        pause=pause,
        command=command.absolute() if command is not None else job.installed(),
    )
    result = job.run(chosen, kind, out)
    for file in result.files:
        typer.echo(str(file))
    typer.echo(f"Next: {result.next}")
