"""The commands of serving: serve, audit skew."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from jobs.cli_output import HOME, HomeOption, open_home, print_table, progress_reporter, read_moment

app = typer.Typer()
audit_app = typer.Typer(help="Compare what was served with what training would read.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address; others than this machine's need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port.")] = 8000,
    workers: Annotated[int, typer.Option(help="Processes.")] = 1,
    now: Annotated[str | None, typer.Option(help="Moment (UTC) to serve at, for a log of the past.")] = None,
    timeout: Annotated[float, typer.Option(help="Longest seconds to an answer.")] = 2.0,
    max_candidates: Annotated[int, typer.Option(help="Most items of one request.")] = 1_000,
    max_body_kb: Annotated[int, typer.Option(help="Largest body of a request.")] = 256,
    log_sample: Annotated[float, typer.Option(help="Share of requests whose features are logged.")] = 0.05,
    log_mb: Annotated[int, typer.Option(help="Size of the log before the oldest files go.")] = 512,
    home: HomeOption = HOME,
) -> None:
    """Serve the live release over HTTP. A token is taken from $HEADWATER_TOKEN.

    Example: `headwater serve --now 2018-01-01T02:00`
    """
    from pydantic import ValidationError

    from feature_repo.contracts.errors import ConfigError
    from jobs import serve as job
    from jobs.serving.settings import TOKEN_VARIABLE, ServeSettings

    ws = open_home(home)
    try:
        settings = ServeSettings.model_validate(
            {
                "home": home.resolve(),
                "host": host,
                "port": port,
                "workers": workers,
                "now": read_moment(now) if now else None,
                "token": os.environ.get(TOKEN_VARIABLE) or None,
                "timeout_s": timeout,
                "max_candidates": max_candidates,
                "max_body_kb": max_body_kb,
                "log_sample": log_sample,
                "log_mb": log_mb,
            }
        )
    except ValidationError as error:
        reasons = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"Options that do not fit: {reasons}.") from None
    job.run(ws, settings)


@audit_app.command()
def skew(
    since: Annotated[str | None, typer.Option(help="Only requests answered from then on (UTC).")] = None,
    max_skew: Annotated[float, typer.Option(help="Largest share of wrong rows of a view.")] = 0.0,
    max_stale: Annotated[float, typer.Option(help="Largest share of rows that were served late.")] = 0.01,
    score_tolerance: Annotated[float, typer.Option(help="Scores may differ by so much.")] = 1e-6,
    home: HomeOption = HOME,
) -> None:
    """Replay logged requests through the offline join, as known when they were answered. Exit code 4: skewed.

    Example: `headwater audit skew`
    """
    from jobs import audit as job

    limits = {"max_skew": max_skew, "max_stale": max_stale, "score_tolerance": score_tolerance}
    moment = read_moment(since) if since else None
    result = job.run(open_home(home), since=moment, **limits, progress=progress_reporter())
    print_audit(result)
    if not result.passed:
        typer.secho("skewed: more than the limits allow", fg="red", err=True)
        raise typer.Exit(4)


def print_audit(result: Any) -> None:
    """Print what an audit found."""
    from jobs.audit import KINDS

    print_table(
        [
            {
                "release": skew.release,
                "view": skew.view,
                "rows": f"{skew.rows:,}",
                **{kind: f"{getattr(skew, kind):,}" for kind in KINDS},
                "covered": f"{skew.covered / max(skew.rows, 1):.1%}",
                "oldest, days": "-" if skew.age_max_s is None else f"{skew.age_max_s / 86_400:.1f}",
            }
            for skew in result.views
        ],
        "\nServed beside the offline join",
    )
    print_table(
        [
            {
                "release": score.release,
                "score": score.score,
                "rows": f"{score.rows:,}",
                "different": f"{score.differing:,}",
                "largest difference": f"{score.max_difference:.1e}",
            }
            for score in result.scores
        ],
        "\nScores",
    )
    typer.echo(f"\n{result.requests:,} requests, {result.rows_exact:,} of {result.rows:,} rows exact: {result.path}")
