"""Random sequences of everything that can happen to versions and releases, crashes included; what must hold, holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from benchmarks import small_home
from benchmarks.small_home import NOW, SPACES, START, WEEK
from feature_repo import failpoints, lifecycle, releases
from feature_repo.contracts.errors import HeadwaterError, NotReadyError, SnapshotRefusedError
from feature_repo.lake import sha256_of
from feature_repo.stores.twin import current
from jobs import doctor, release, versions
from jobs.workspace import Workspace

VERSIONS = st.sampled_from(["v1", "v2", "v3"])


class Crash(BaseException):
    """Stands for the end of the process, which the crash matrix brings about for real."""


class Lifecycle(RuleBasedStateMachine):
    """One home folder; `online` stands for the online store."""

    seed: Path | None = None

    @initialize()
    def begin(self) -> None:
        if Lifecycle.seed is None:
            Lifecycle.seed = Path(mkdtemp()) / "seed"
            small_home.build(Lifecycle.seed, refreshes=2)
        self.root = Path(mkdtemp()) / "home"
        shutil.copytree(Lifecycle.seed, self.root)
        self.ws = Workspace.open(self.root)
        self.week, self.online, self.crash_at = 1, dict[str, str](), 0
        self.spaces: dict[str, str] = {}
        self.patches = ExitStack()
        self.patches.enter_context(patch("jobs.online_check.check_online", self._check_online))
        self.patches.enter_context(patch("jobs.store.open_store", lambda _: None))
        self.patches.enter_context(patch.dict("os.environ", {failpoints.VARIABLE: "never"}))
        self.patches.enter_context(patch("feature_repo.failpoints._die", self._die))

    def teardown(self) -> None:
        if hasattr(self, "patches"):
            self.patches.close()
            shutil.rmtree(self.root.parent)

    def _check_online(self, ws: Workspace, snapshot: Any, store: Any) -> None:
        if self.online.get(snapshot.view) != snapshot.snapshot_id:
            raise NotReadyError("not online")

    def _die(self, *_: object) -> None:
        self.crash_at -= 1
        if self.crash_at == 0:
            raise Crash

    @contextmanager
    def _perhaps(self) -> Iterator[None]:
        """Let an operation be refused with a word, or be cut off."""
        try:
            yield
        except (HeadwaterError, Crash) as ended:
            assert isinstance(ended, Crash) or str(ended).endswith((".", "`")) or "online" in str(ended), ended

    @rule(crash_at=st.integers(0, 12))
    def crash_soon(self, crash_at: int) -> None:
        self.crash_at = crash_at

    @rule(
        version=VERSIONS,
        accept=st.sampled_from([True, True, True, False]),
        bridge=st.sampled_from([None, lifecycle.Origin("artifacts/bridge", SPACES["v3"])]),
    )
    def refresh(self, version: str, accept: bool, bridge: lifecycle.Origin | None) -> None:
        from jobs.refresh import why_not

        self.week += 1
        with self._perhaps():
            if why_not(self.ws, version, START + self.week * WEEK) is None:
                try:
                    small_home.refresh(self.ws, version, START + self.week * WEEK, accept=accept, bridge=bridge)
                except SnapshotRefusedError:
                    assert not accept

    @rule()
    def materialize(self) -> None:
        self.online |= {item.view: item.snapshot_id for item in self.ws.ledger.snapshots(accepted=True)}

    @rule()
    def register(self) -> None:
        with self._perhaps():
            versions.register(self.ws, SPACES["v3"])

    @rule(version=VERSIONS)
    def train(self, version: str) -> None:
        with self._perhaps():
            small_home.train(self.ws, "ctr_ranker", version)

    @rule()
    def create_release(self) -> None:
        with self._perhaps():
            release.create(self.ws, ["ctr_ranker", "retrieval"], now=NOW)

    @rule(number=st.integers(1, 3))
    def promote(self, number: int) -> None:
        with self._perhaps():
            release.promote(self.ws, f"r{number}", by="me", now=NOW)
            live = releases.current_release(self.ws.ledger)
            assert live is not None and live.name == f"r{number}"
            assert {view: self.online[view] for view in live.snapshots} == {
                view: self.ws.ledger.snapshots(view, accepted=True)[-1].snapshot_id for view in live.snapshots
            }

    @rule()
    def rollback(self) -> None:
        stack = releases.live_stack(releases.history(self.ws.ledger))
        with self._perhaps():
            assert release.rollback(self.ws, by="me", now=NOW).release.name == stack[-2]

    @rule(number=st.integers(1, 3))
    def drop(self, number: int) -> None:
        with self._perhaps():
            release.drop(self.ws, f"r{number}", by="me", now=NOW)

    @rule(version=VERSIONS)
    def retire(self, version: str) -> None:
        with self._perhaps():
            versions.retire(self.ws, version, by="me", why="old", now=NOW)

    @rule(days=st.sampled_from([7, 21]))
    def prune(self, days: int) -> None:
        with self._perhaps():
            versions.prune(self.ws, keep=timedelta(days=days))

    @rule()
    def mend(self) -> None:
        self.crash_at = 0
        doctor.run(self.ws)
        assert all("The model of" in item.what for item in doctor.run(self.ws).findings)

    @invariant()
    def what_the_ledger_knows_is_there(self) -> None:
        for item in self.ws.ledger.snapshots(accepted=True):
            path = self.root / item.path
            assert sha256_of(path) == item.sha256 and current(path) is not None
            assert item.space_id == self.ws.ledger.version(item.version or "").space_id

    @invariant()
    def what_a_bridge_made_is_published(self) -> None:
        known = {item.snapshot_id: item for item in self.ws.ledger.snapshots(accepted=True)}
        carried = lifecycle.bridged(self.ws.ledger)
        assert carried.keys() <= known.keys()
        if not lifecycle.horizons(self.ws.ledger):  # pruning may leave the one of two that somebody needs
            moments = [(known[name].version, known[name].as_of) for name in carried]
            assert all(moments.count(moment) == 2 for moment in moments)

    @invariant()
    def a_version_keeps_its_space(self) -> None:
        now = {version.version: version.space_id for version in self.ws.ledger.versions()}
        assert self.spaces.items() <= now.items()
        self.spaces = now

    @invariant()
    def what_is_used_is_alive(self) -> None:
        retired = lifecycle.retirements(self.ws.ledger).keys()
        known = {item.snapshot_id for item in self.ws.ledger.snapshots(accepted=True)}
        for usable in releases.usable(self.ws.ledger):
            assert not retired & usable.versions.keys()
            assert set(usable.snapshots.values()) <= known
        live = releases.current_release(self.ws.ledger)
        if live is not None:
            release.check_parts(self.ws, live, thorough=True)
            assert live.name in {usable.name for usable in releases.usable(self.ws.ledger)}


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(
    max_examples=5,
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
