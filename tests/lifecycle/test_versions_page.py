"""docs/versions.md is followed after the demo: it names the version that `register` makes there, and its settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobs import demo
from jobs.config import Config
from jobs.config import save as save_config
from jobs.versions import next_version
from jobs.workspace import Workspace

PAGE = (Path(__file__).parents[2] / "docs" / "versions.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(line for line in PAGE.splitlines() if line.startswith("    "))
REGISTERED = re.search(r"headwater version register --like \w+ --train-end \S+\n +headwater version show (v\d+)", PAGE)
# Wherever a command means the version that was just trained.
OF_THE_NEW = (
    r"version compare v1 (v\d+)",
    r"version (?:bridge|rehearse) (v\d+) --into v1",
    r'"user_embedding_v1:embedding", "item_embedding_(v\d+):embedding"',
    r'"name": "ctr_ranker_(v\d+)"',
    r'"name": "ctr_ranker_\w+", "task": "ctr", "versions": \["(v\d+)"\]',
    r"(?:training-set|train-downstream|--consumer) ctr_ranker_(v\d+)",
)


@pytest.fixture
def new(tmp_path: Path) -> str:
    """The number that `register` gives a retrained model in a home folder of the demo."""
    ws = Workspace.open(tmp_path)
    save_config(demo.CONFIG, ws.home)
    return next_version(Workspace.open(tmp_path))


def test_what_register_makes_is_the_next_number_after_the_demos(new: str) -> None:
    highest = max(int(upstream.version[1:]) for upstream in demo.CONFIG.upstreams)
    assert new == f"v{highest + 1}"
    assert REGISTERED is not None and REGISTERED[1] == new
    assert f'"{new} is registered"' in PAGE


@pytest.mark.parametrize("pattern", OF_THE_NEW)
def test_every_later_step_means_that_version(new: str, pattern: str) -> None:
    named = re.findall(pattern, BLOCKS)
    assert named and set(named) == {new}, named


def test_no_command_names_a_version_that_is_not_there(new: str) -> None:
    there = {upstream.version for upstream in demo.CONFIG.upstreams} | {new}
    assert set(re.findall(r"(?<![a-z])v\d+\b", BLOCKS)) <= there


def test_shares_of_smoothing_are_those_of_the_settings() -> None:
    demos, default = demo.CONFIG.smoothing, Config().smoothing
    assert demos is not None and default is not None
    said = re.sub(r"\s+", " ", PAGE)
    assert f"{demos:g} and {1 - demos:g} in the demo" in said
    assert f"{default:g} and {1 - default:g} where `smoothing` in `config.yaml` says nothing else" in said
