"""The exported cycle: run by a real shell with a stand-in for the command that records what it is asked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from feature_repo.contracts.errors import ConfigError
from jobs import schedule as job

STEPS = ["backfill", "apply", "materialize", "audit skew"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "a home's $folder"  # what a shell would take apart
    folder.mkdir()
    return folder


def exported(home: Path, kind: job.Kind = "cron", code: str = "exit 0", **settings: object) -> tuple[Path, Path]:
    """Return the script of a cycle whose commands do `code`, and the file of what was asked of it."""
    asked = home.parent / "asked"
    command = home.parent / "headwater"
    command.write_text(f'#!/bin/sh\necho "$HEADWATER_HOME|$TZ|$*" >> {asked}\n{code}\n')
    command.chmod(0o755)
    plan = job.Schedule(home=home, command=command, pause=0, **settings)  # type: ignore[arg-type]
    return job.run(plan, kind, home.parent / "out").files[0], asked


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(script), *arguments], capture_output=True, text=True, timeout=60)


def test_a_cycle_runs_every_step_in_order_in_utc(home: Path) -> None:
    before = f"echo before >> {home.parent}/asked"
    script, asked = exported(home, before=before)
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert asked.read_text().splitlines() == ["before", *[f"{home}|UTC|{step}" for step in STEPS]]


def test_a_step_that_fails_is_tried_again_and_then_told(home: Path) -> None:
    told = home.parent / "told"
    alert = f'echo "$HEADWATER_STEP $HEADWATER_EXIT" >> {told}'
    script, asked = exported(home, code='[ "$1" != apply ] || exit 75', alert=alert)
    done = run(script)
    assert done.returncode == 75
    assert [line.split("|")[2] for line in asked.read_text().splitlines()] == ["backfill", *["apply"] * 3]
    assert told.read_text() == "apply 75\n"
    # A fault that passes needs no person.
    told.unlink()
    script, asked = exported(
        home, code=f"[ -e {home.parent}/once ] || {{ touch {home.parent}/once; exit 1; }}", alert=alert
    )
    assert run(script).returncode == 0 and not told.exists()


@pytest.mark.parametrize("code", job.FINAL_CODES)
def test_what_would_fail_again_is_not_tried_again(home: Path, code: int) -> None:
    script, asked = exported(home, code=f"exit {code}")
    assert run(script).returncode == code
    assert len(asked.read_text().splitlines()) == 1


def test_two_cycles_never_overlap_and_a_killed_one_leaves_no_lock(home: Path) -> None:
    script, asked = exported(home, code="exec sleep 30", audit=False)
    first = subprocess.Popen([str(script)], start_new_session=True)
    try:
        while not asked.exists():
            time.sleep(0.02)
        second = run(script)
        assert second.returncode == 75 and "still running" in second.stderr
        assert len(asked.read_text().splitlines()) == 1
    finally:
        os.killpg(first.pid, 9)
        first.wait()
    script, asked = exported(home, audit=False)
    assert run(script).returncode == 0


def test_one_step_for_a_scheduler_that_tries_again_by_itself(home: Path) -> None:
    told = home.parent / "told"
    script, asked = exported(home, code="exit 9", alert=f"touch {told}")
    assert run(script, "materialize").returncode == 9
    assert len(asked.read_text().splitlines()) == 1 and not told.exists()
    wrong = run(script, "nonsense")
    assert wrong.returncode == 2 and "no step 'nonsense'" in wrong.stderr


def test_secrets_come_from_the_home_folder(home: Path) -> None:
    (home / "schedule.env").write_text("HEADWATER_LEDGER=postgresql://secret\n")
    script, _ = exported(home, code='[ "$HEADWATER_LEDGER" = postgresql://secret ]')
    assert run(script).returncode == 0
    assert "postgresql" not in script.read_text()


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", "Asia/Kathmandu", "America/St_Johns"])
def test_cron_runs_at_that_time_in_utc_wherever_the_machine_is(home: Path, zone: str) -> None:
    from datetime import UTC, datetime, timedelta
    from zoneinfo import ZoneInfo

    exported(home, at=(1, 30))
    lines = (home.parent / "out" / "headwater-cycle.crontab").read_text().splitlines()
    (line,) = [line for line in lines if not line.startswith("#")]
    found = re.fullmatch(r"([\d,]+) \* \* \* \* (.+)", line)
    assert found is not None
    minutes = {int(minute) for minute in found[1].split(",")}
    # cron ends a command at a bare % and drops the backslash of \%.
    assert not re.search(r"(?<!\\)%", found[2])
    ran = []
    fake = home.parent / "bin"
    fake.mkdir()
    start = datetime(2024, 3, 31, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    for quarter in range(24 * 60):
        moment = start + timedelta(minutes=quarter)
        if moment.astimezone(ZoneInfo(zone)).minute in minutes and moment.hour == 1:
            (fake / "date").write_text(f'#!/bin/sh\n[ "$*" = "-u +%H%M" ] && echo {moment:%H%M}\n')
            (fake / "date").chmod(0o755)
            path = f"{fake}:{os.environ['PATH']}"
            command = found[2].replace(r"\%", "%").replace(str(home.parent / "out" / "headwater-cycle.sh"), "echo ran")
            told = subprocess.run(["sh", "-c", command], env={"PATH": path}, capture_output=True, text=True, check=True)
            ran += [f"{moment:%H:%M}"] if told.stdout == "ran\n" else []
    assert ran == ["01:30"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_units(home: Path) -> None:
    exported(home, "systemd", at=(23, 5))
    units = sorted((home.parent / "out").glob("*.[st][ei][rm]*"))
    assert [unit.suffix for unit in units] == [".service", ".timer"]
    checked = subprocess.run(["systemd-analyze", "verify", *map(str, units)], capture_output=True, text=True)
    assert checked.returncode == 0 and "headwater" not in checked.stderr, checked.stderr
    when = re.search(r"OnCalendar=(.+)", units[1].read_text())
    assert when is not None
    calendar = subprocess.run(["systemd-analyze", "calendar", when[1]], capture_output=True, text=True)
    assert calendar.returncode == 0 and "23:05:00 UTC" in calendar.stdout


def test_the_airflow_file_is_python_with_every_step(home: Path) -> None:
    exported(home, "airflow", name="my-cycle", alert='echo "it\'s" bad', audit=False)
    text = (home.parent / "out" / "my_cycle_cycle.py").read_text()
    compile(text, "dag", "exec")
    assert "STEPS = ('backfill', 'apply', 'materialize')" in text and "30 1 * * *" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "a b"}, "--name is 'a b'"),
        ({"attempts": 0}, "--attempts"),
        ({"alert": "one\ntwo"}, "--alert holds a line break"),
    ],
)
def test_what_cannot_be_scheduled_is_said(home: Path, settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        job.Schedule(home=home, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1", "24:00", "12:60", "noon", ""])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="--at"):
        job.read_time(text)


def test_a_script_that_a_scheduler_may_call_is_not_replaced_by_another(home: Path) -> None:
    script, _ = exported(home, audit=False)
    before = script.read_bytes()
    exported(home, audit=False, at=(4, 0))
    exported(home, "systemd", audit=False)
    other = home.parent / "other"
    other.mkdir()
    with pytest.raises(ConfigError, match=r"for another home folder, .* another --name or --out"):
        exported(other, audit=False)
    with pytest.raises(ConfigError, match="with other settings"):
        exported(home, "airflow")
    assert script.read_bytes() == before and not (script.parent / "headwater_cycle.py").exists()
    exported(other, name="other")
    script.unlink()
    assert exported(home)[0].read_bytes() != before


def test_cron_refuses_a_folder_that_it_would_cut(home: Path) -> None:
    with pytest.raises(ConfigError, match="--out without spaces"):
        job.run(job.Schedule(home=home), "cron", home / "with space")
