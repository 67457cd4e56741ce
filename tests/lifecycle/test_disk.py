"""A real full disk and a real read-only one: a clear error, nothing lost, and everything goes on afterwards.

The disk is a small tmpfs in a mount namespace of its own. Where the machine allows none, the faults are stood for by
other means in test_doctor.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOUNT = "mount -t tmpfs -o size=24m tmpfs {disk}"
NAMESPACES = (["unshare", "--mount"], ["unshare", "--mount", "--user", "--map-root-user"])


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return what each phase of disk_script.py printed, all on one disk."""
    disk = tmp_path_factory.mktemp("disk")
    mount = MOUNT.format(disk=disk)
    run = f"{sys.executable} -m tests.lifecycle.disk_script"
    steps = [
        mount,
        f"{run} full {disk}/home",
        f"mount -o remount,ro {disk}",
        f"{run} read-only {disk}/home",
        f"mount -o remount,rw {disk}",
        f"{run} after {disk}/home",
    ]
    for namespace in NAMESPACES:
        if subprocess.run([*namespace, "sh", "-c", mount], capture_output=True).returncode == 0:
            done = subprocess.run([*namespace, "sh", "-ec", "\n".join(steps)], capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stderr
            printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            return dict(zip(("full", "read-only", "after"), printed, strict=True))
    pytest.skip("no file system can be mounted here")


def test_wherever_a_full_disk_stops_it_the_error_is_clear_and_nothing_is_lost(told: dict[str, Any]) -> None:
    steps, before = told["full"]["steps"], told["full"]["before"]
    assert before["wrong"] == [] and len(before["snapshots"]) == 16
    errors = [step[name] for step in steps for name in ("registered", "refreshed") if step[name] != "done"]
    assert len(errors) > 4 and all(error.startswith(("LakeError: ", "LedgerError: ")) for error in errors), errors
    assert all("ree space" in error for error in errors), errors
    assert {error.split(":")[0] for error in errors} == {"LakeError", "LedgerError"}
    for step in steps:
        assert step["wrong"] == [] and set(before["snapshots"]) <= set(step["snapshots"])
    assert steps[-1]["refreshed"] == "done" and len(steps[-1]["snapshots"]) == 18


def test_on_a_read_only_disk_reading_goes_on_and_writing_is_refused_in_words(told: dict[str, Any]) -> None:
    for name, word in told["read-only"]["writes"].items():
        assert word.startswith("LakeError: ") and "permissions" in word, (name, word)
    assert told["read-only"]["wrong"] == [] and len(told["read-only"]["snapshots"]) == 18
    assert [row["version"] for row in told["read-only"]["rows"]] == ["v1", "v2", "v3"]


def test_afterwards_the_doctor_mends_what_is_left_and_everything_goes_on(told: dict[str, Any]) -> None:
    after = told["after"]
    assert after["mended"] and after["left"] == 0, after["findings"]
    assert after["refreshed"] == "done" and after["wrong"] == [] and len(after["snapshots"]) == 20
