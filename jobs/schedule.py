"""The refresh cycle for a scheduler that is there already: cron, systemd or Airflow.

All three call one shell script, which knows the steps, their order, the lock and the alert. A step may be run again at
any time: what is published, registered or loaded already is left as it is, and what was missed is caught up on. So a
failed step is tried again, unless its exit code says that the same would happen: 2 (a setting is wrong), 3 (the gate
refused a snapshot), 4 (the audit found skew).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from feature_repo.contracts.errors import ConfigError
from feature_repo.lake import replacing

Kind = Literal["cron", "systemd", "airflow"]
FINAL_CODES = (2, 3, 4)
# Every time zone is a multiple of a quarter of an hour away from UTC.
QUARTER = 15


@dataclass(frozen=True)
class Schedule:
    """When the cycle runs and what it does.

    Attributes
    ----------
    home
        The home folder.
    at
        Hour and minute, UTC, of every day. Days on which no refresh is due (``refresh_days``) find nothing to do.
    name
        Of the units, the DAG and the files.
    before
        Shell command that runs first, such as the ingest of the last day.
    alert
        Shell command for a cycle that failed; it finds ``HEADWATER_STEP`` and ``HEADWATER_EXIT``.
    audit
        Whether the skew audit closes the cycle.
    attempts, pause
        How often a step is tried, and the seconds in between.
    command
        The installed `headwater`.
    """

    home: Path
    at: tuple[int, int] = (1, 30)
    name: str = "headwater"
    before: str | None = None
    alert: str | None = None
    audit: bool = True
    attempts: int = 3
    pause: int = 300
    command: Path = Path("headwater")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name):
            raise ConfigError(f"--name is '{self.name}': use letters, digits, - and _.")
        if self.attempts < 1 or self.pause < 0:
            raise ConfigError("--attempts is at least 1 and --pause is a number of seconds, 0 or more.")
        for what, text in (("--home", self.home), ("--before", self.before), ("--alert", self.alert)):
            if text is not None and re.search(r"[\x00-\x1f]", str(text)):
                raise ConfigError(f"{what} holds a line break or control character: write a script and name that.")

    @property
    def steps(self) -> dict[str, str]:
        """The steps in order, each with its command line; ``$HEADWATER`` and ``$HEADWATER_HOME`` are set."""
        own = {"before": self.before} if self.before else {}
        refresh = {name: f'"$HEADWATER" {name}' for name in ("backfill", "apply", "materialize")}
        return {**own, **refresh, **({"audit": '"$HEADWATER" audit skew'} if self.audit else {})}


@dataclass(frozen=True)
class Result:
    """The files that were written, and what to do with them."""

    files: tuple[Path, ...]
    next: str


def read_time(text: str) -> tuple[int, int]:
    """Read ``01:30``; ConfigError if it is no time of day."""
    found = re.fullmatch(r"(\d{1,2}):(\d{2})", text)
    if found is None or int(found[1]) > 23 or int(found[2]) > 59:
        raise ConfigError(f"--at is '{text}': write hour and minute of the day in UTC, such as 01:30.")
    return int(found[1]), int(found[2])


def installed() -> Path:
    """Return the absolute path of the `headwater` command of this environment."""
    beside = Path(sys.executable).with_name("headwater")
    found = str(beside) if beside.exists() else shutil.which("headwater")
    if found is None:
        raise ConfigError("The command `headwater` is not installed in this environment: name it with --command.")
    return Path(found)


def run(schedule: Schedule, kind: Kind, out: Path) -> Result:
    """Write the cycle's script and the scheduler's own files into a folder; another script there is not replaced.

    Raises
    ------
    ConfigError
        If a path cannot stand in the scheduler's file, or the script there is another home's or has other settings.
    LakeError
        If the folder cannot be written.
    """
    folder = out.resolve()
    if kind == "cron" and re.search(r"[\s%\"'\\]", str(folder)):
        raise ConfigError(f"cron cannot run a script in '{folder}': choose an --out without spaces, quotes, % and \\.")
    script = folder / f"{schedule.name}-cycle.sh"
    texts = {script: _script(schedule), **_WRITERS[kind](schedule, script)}
    _check_same(script, texts[script])
    for path, text in texts.items():
        with replacing(path) as staged:
            staged.write_text(text, encoding="utf-8")
            os.chmod(staged, 0o755 if path.suffix == ".sh" else 0o644)
    files = tuple(texts)
    return Result(files, _NEXT[kind].format(folder=folder, name=schedule.name, file=files[1]))


def _check_same(script: Path, text: str) -> None:
    """Raise ConfigError where another script lies: what calls it would go on with another home or other steps."""
    if not script.is_file() or (there := script.read_text(encoding="utf-8", errors="replace")) == text:
        return
    home = next(line for line in text.splitlines() if "HEADWATER_HOME=" in line)
    why = "with other settings" if home in there.splitlines() else "for another home folder"
    raise ConfigError(
        f"{script} was made {why}, and a scheduler may call it. Give another --name or --out, or remove it first."
    )


def _script(schedule: Schedule) -> str:
    cases = "\n".join(f"    {name}) {line} ;;" for name, line in schedule.steps.items())
    profile = os.environ.get("HEADWATER_PROFILE")
    return _CYCLE.format(
        home=shlex.quote(str(schedule.home)),
        command=shlex.quote(str(schedule.command)),
        profile=f"export HEADWATER_PROFILE={shlex.quote(profile)}\n" if profile else "",
        alert=shlex.quote(schedule.alert or ""),
        attempts=schedule.attempts,
        pause=schedule.pause,
        steps=" ".join(schedule.steps),
        cases=cases,
        final="|".join(map(str, FINAL_CODES)),
    )


def _cron(schedule: Schedule, script: Path) -> dict[Path, str]:
    hour, minute = schedule.at
    quarters = ",".join(str(m) for m in sorted((minute + QUARTER * turn) % 60 for turn in range(60 // QUARTER)))
    now = f"{hour:02d}{minute:02d}"
    line = rf'{quarters} * * * * if [ "$(date -u +\%H\%M)" = {now} ]; then {script}; fi'
    text = (
        f"# {schedule.name}: the refresh cycle, every day at {hour:02d}:{minute:02d} UTC. Not every cron knows time "
        f"zones, so it looks every\n# quarter of an hour whether it is that time in UTC. Add with: "
        f"(crontab -l; cat {script.with_suffix('').name}.crontab) | crontab -\n{line}\n"
    )
    return {script.with_suffix(".crontab"): text}


def _systemd(schedule: Schedule, script: Path) -> dict[Path, str]:
    hour, minute = schedule.at
    # systemd expands % and $ in command lines and takes \ and " for itself.
    start = str(script).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    service = (
        f"[Unit]\nDescription=Refresh cycle of {schedule.name}\n"
        "Wants=network-online.target\nAfter=network-online.target\n"
        f'\n[Service]\nType=oneshot\nExecStart="{start}"\nNice=10\n'
    )
    timer = (
        f"[Unit]\nDescription=Refresh cycle of {schedule.name}, every day\n\n[Timer]\n"
        f"OnCalendar=*-*-* {hour:02d}:{minute:02d}:00 UTC\nPersistent=true\n\n[Install]\nWantedBy=timers.target\n"
    )
    return {
        script.with_name(f"{schedule.name}-cycle.timer"): timer,
        script.with_name(f"{schedule.name}-cycle.service"): service,
    }


def _airflow(schedule: Schedule, script: Path) -> dict[Path, str]:
    hour, minute = schedule.at
    text = _DAG.format(
        name=schedule.name,
        script=str(script),
        steps=tuple(schedule.steps),
        alert=schedule.alert,
        cron=f"{minute} {hour} * * *",
        retries=schedule.attempts - 1,
        pause=schedule.pause,
        final=FINAL_CODES,
    )
    return {script.with_name(f"{schedule.name.replace('-', '_')}_cycle.py"): text}


_WRITERS: dict[Kind, Callable[[Schedule, Path], dict[Path, str]]] = {
    "cron": _cron,
    "systemd": _systemd,
    "airflow": _airflow,
}
_NEXT = {
    "cron": "(crontab -l; cat {file}) | crontab -",
    "systemd": "systemctl link {folder}/{name}-cycle.service && systemctl enable --now {folder}/{name}-cycle.timer",
    "airflow": "link {file} into Airflow's dags folder (Airflow 3); its workers need this machine's home folder",
}

_CYCLE = """#!/bin/sh
# The refresh cycle, written by `headwater schedule export`; remove this file to export other settings in its place.
#   without an argument: every step in order, each tried up to {attempts} times; a failure ends the cycle and is told
#   STEP: that step, once, for a scheduler that tries again by itself
# Steps: {steps}. What a step finds done it leaves as it is, so that each may be run again at any time.
# Secrets, such as HEADWATER_LEDGER, belong into schedule.env of the home folder, which is read here.
set -u
export TZ=UTC HEADWATER_HOME={home}
{profile}HEADWATER={command}
ALERT={alert}
PAUSE={pause}

step() {{
    case "$1" in
{cases}
    *) echo "There is no step '$1'; there are: {steps}." >&2; return 2 ;;
    esac
}}

failed() {{
    echo "$(date -u +%FT%TZ) $1 failed with exit code $2" >&2
    if [ -n "$ALERT" ] && [ "$told" = yes ]; then
        HEADWATER_STEP="$1" HEADWATER_EXIT="$2" sh -c "$ALERT" 9>&- || echo "The alert itself failed." >&2
    fi
    exit "$2"
}}

if [ $# -eq 0 ]; then told=yes; else told=no; fi
[ -d "$HEADWATER_HOME" ] || failed "$HEADWATER_HOME, which is no folder:" 2
# One cycle at a time; the lock ends with the last process that inherited it.
exec 9>"$HEADWATER_HOME/.schedule.lock" || failed lock 73
flock -n 9 || failed "an earlier cycle is still running:" 75
if [ -f "$HEADWATER_HOME/schedule.env" ]; then
    set -a
    . "$HEADWATER_HOME/schedule.env"
    set +a
fi

if [ $# -gt 0 ]; then
    step "$1"
    exit $?
fi
for name in {steps}; do
    attempt=1
    while :; do
        echo "$(date -u +%FT%TZ) $name" >&2
        step "$name"
        code=$?
        [ $code -eq 0 ] && break
        # The same settings, the same snapshot or the same log would give the same answer again.
        case $code in {final}|126|127) failed "$name" $code ;; esac
        [ $attempt -ge {attempts} ] && failed "$name" $code
        attempt=$((attempt + 1))
        sleep "$PAUSE"
    done
done
"""

_DAG = '''"""The refresh cycle, written by `headwater schedule export`; exporting again replaces this file."""

import os
import subprocess
from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

SCRIPT = {script!r}
STEPS = {steps!r}
ALERT = {alert!r}
FINAL_CODES = {final!r}  # the same settings, the same snapshot or the same log would give the same answer again


def tell(context):
    """Run the alert for a task that failed for good."""
    if ALERT:
        failed = context["task_instance"]
        code = str(getattr(context.get("exception"), "code", 1))
        told = {{"HEADWATER_STEP": failed.task_id, "HEADWATER_EXIT": code}}
        subprocess.run(ALERT, shell=True, env={{**os.environ, **told}})


def run(step):
    """Run one step of the cycle; raise what Airflow tries again, or what it does not."""
    code = subprocess.run([SCRIPT, step]).returncode
    if code:
        kind = AirflowFailException if code in FINAL_CODES else AirflowException
        error = kind(f"{{step}} ended with exit code {{code}}; its words stand in the log above.")
        error.code = code
        raise error


with DAG(
    dag_id={name!r},
    schedule={cron!r},  # Airflow reads it in UTC
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    catchup=False,  # a cycle catches up by itself
    max_active_runs=1,
    default_args={{
        "retries": {retries},
        "retry_delay": timedelta(seconds={pause}),
        "on_failure_callback": tell,
    }},
    tags=["headwater"],
) as dag:
    earlier = None
    for name in STEPS:
        one = task(task_id=name)(run)(name)
        if earlier is not None:
            earlier >> one
        earlier = one
'''
