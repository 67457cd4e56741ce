"""The commands that run every stage: demo, run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli_output import HOME, HomeOption, begun, open_home, print_lift, progress_reporter, quiet

app = typer.Typer()


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
    from jobs import chain
    from jobs import config as settings
    from jobs.workspace import Workspace

    if config is not None:
        wanted = Workspace(begun(home), settings.read(config))
        chain.check(wanted)
        settings.save(wanted.config, wanted.home)
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
    typer.echo(f"Report:  {result.report.path}\nNumbers: {home.resolve() / 'reports' / 'summary.json'}")


def _served(served: Any) -> None:
    best, audit = served.answer["items"][0], served.audit
    scores = ", ".join(f"{name} {value:.4f}" for name, value in best.items() if name != "item_id")
    typer.echo(
        f"\nServed over HTTP by release {served.release}: item {best['item_id']} first ({scores}), "
        f"{served.milliseconds:.0f} ms.\nAudit: {audit.rows_exact:,} of {audit.rows:,} served rows are exactly what "
        f"training reads{'' if audit.passed else '; SKEWED'}: {audit.path}"
    )
