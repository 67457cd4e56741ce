"""The commands of downstream models: training-set, train-downstream, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.cli_output import HOME, HomeOption, open_home, print_lift, print_table, progress_reporter

app = typer.Typer()


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
