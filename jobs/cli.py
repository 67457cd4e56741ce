"""The command line. Every command of `jobs/cli_*.py` reads options, calls one job and prints its result.

Here stand their order and what ends a run: the message of an error, the exit code.
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import Annotated, Any

import typer

from jobs import (
    cli_care,
    cli_downstream,
    cli_ingest,
    cli_plan,
    cli_release,
    cli_run,
    cli_serve,
    cli_snapshot,
    cli_upstream,
    cli_versions,
    cli_world,
)

app = typer.Typer(
    name="headwater",
    help="Learn user and item embeddings, refresh them on a schedule, check them, version them, feed rankers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
# In the order in which help lists them: that of the data.
app.add_typer(cli_run.app)
app.add_typer(cli_ingest.app, name="ingest")
app.add_typer(cli_upstream.app)
app.add_typer(cli_downstream.app)
app.add_typer(cli_care.app)
app.add_typer(cli_snapshot.app, name="snapshot")
app.add_typer(cli_versions.app, name="version")
app.add_typer(cli_release.app, name="release")
app.add_typer(cli_serve.app)
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
    from feature_repo.profile import VARIABLE, settings_file

    if profile is not None:
        os.environ[VARIABLE] = profile
    settings_file()  # an unknown profile is refused before anything is done


if __name__ == "__main__":
    main()
