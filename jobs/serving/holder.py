"""Which release is served: loaded beside the old one when the pointer moves, and put in its place by one assignment."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from feature_repo.contracts.errors import HeadwaterError, NotReadyError
from jobs.serving.served import Served, current_key, load
from jobs.serving.settings import ServeSettings
from jobs.workspace import Workspace

if TYPE_CHECKING:
    from feast import FeatureStore

logger = logging.getLogger("headwater.serve")


class Holder:
    """Holds the loaded release and follows the pointer.

    Parameters
    ----------
    warm
        Called with a release before it takes over, so that no request pays for first calls.
    switched
        Called with the release that took over.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        warm: Callable[[Served], None] = lambda served: None,
        switched: Callable[[Served], None] = lambda served: None,
    ) -> None:
        self._settings, self._warm, self._switched = settings, warm, switched
        self._served: Served | None = None
        self.problem: str | None = "The release is being loaded."
        self._unsettled = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="holder", daemon=True)
        self._workspace = Workspace.open(settings.home)

    def start(self) -> None:
        """Load, and follow the pointer from then on."""
        self._thread.start()

    def close(self) -> None:
        """Follow it no longer."""
        self._stop.set()
        self._thread.join(self._settings.shutdown_s)

    @property
    def served(self) -> Served:
        """The release to answer one request with. Ask once per request; NotReadyError if there is none yet."""
        served = self._served
        if served is None:
            raise NotReadyError(self.problem or "No release is loaded.")
        return served

    def refresh(self) -> bool:
        """Look at the pointer; load and take over if it moved. Returns whether it did."""
        from jobs.serving.rows import micros

        now = self._settings.moment()
        held = self._served
        if held is not None and held.key == current_key(self._workspace, now) and micros(now) < held.until:
            held.users.check()
            self.problem = None
            if self._unsettled:
                _settle()
                self._unsettled = False
            return False
        fresh = load(self._workspace, self._store(), now)
        self._warm(fresh)
        self._served, self.problem, self._unsettled = fresh, None, True
        self._switched(fresh)
        logger.info("serving %s", fresh.release.name)
        return True

    def _store(self) -> FeatureStore:
        from jobs.store import open_store

        store = open_store(self._workspace.home)
        self._check_loaded(store)
        return store

    def _check_loaded(self, store: FeatureStore) -> None:
        """Refuse to replay a moment that the online store has already passed: it keeps the latest rows alone."""
        if self._settings.now is None:
            return
        late = [
            view.name
            for view in store.list_feature_views()
            if view.most_recent_end_time is not None and view.most_recent_end_time > self._settings.now
        ]
        if late:
            raise NotReadyError(
                f"The online store holds rows of {', '.join(late)} from after {self._settings.now:%Y-%m-%d %H:%M} UTC, "
                "and none from before. Choose --now at or after the last `headwater materialize`."
            )

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self.refresh()
            except HeadwaterError as error:
                self._failed(str(error))
            except Exception as error:
                # What a library raises must not end the thread: the old release goes on being served.
                logger.exception("loading failed")
                self._failed(f"Loading failed ({type(error).__name__}); see the server's log.")
            self._stop.wait(self._settings.poll_s)

    def _failed(self, problem: str) -> None:
        if problem != self.problem:
            logger.error("%s", problem)
        self.problem = problem


def _settle() -> None:
    """Free the release that was replaced, and take what is loaded out of the garbage collector's sight.

    To walk all of it takes a third of a second, in which no request is answered: better once per switch, a look at the
    pointer later, when nobody holds the old release any more, than whenever Python chooses.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
