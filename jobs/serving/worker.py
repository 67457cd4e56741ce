"""The one thread that computes: it takes all requests that wait, and answers those of one release together.

Nothing waits for company: a lone request is a batch of one, and batches grow by themselves where requests come faster
than they are answered.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from feature_repo.contracts.errors import BusyError, NotFoundError
from feature_repo.contracts.naming import embedding_view
from jobs.serving.formula import Formula
from jobs.serving.rankers import Rows
from jobs.serving.rows import Vectors
from jobs.serving.served import Question, Served
from jobs.serving.settings import ServeSettings


@dataclass(frozen=True)
class Task:
    """One request.

    Attributes
    ----------
    retrieve
        How many candidates to find; None where the request brings its own.
    rank
        Whether to score them.
    keep
        How many of the best to answer with; None for all, in the order of the request.
    """

    user_id: Any
    item_ids: Sequence[Any] = ()
    context: dict[str, Any] = field(default_factory=dict)
    retrieve: int | None = None
    filters: dict[str, list[Any]] = field(default_factory=dict)
    exclude: Sequence[Any] = ()
    rank: bool = True
    formula: Formula | None = None
    keep: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What was found for one request: N items, best first or in the order of the request.

    Attributes
    ----------
    scores
        ``score``, ``ctr``, ``cvr``, ``similarity``: float64 [N] each, as far as there are such.
    rows, places
        Where the features of the N items lie; None where nothing was ranked.
    fallback
        ``popular`` where the user has no vector to search with.
    """

    item_ids: list[Any]
    scores: dict[str, np.ndarray]
    fallback: str | None
    moment: datetime
    rows: Rows | None = None
    places: np.ndarray | None = None


@dataclass(frozen=True)
class _Waiting:
    served: Served
    task: Task | Callable[[], Any]
    future: Future[Any]


class Worker:
    """Answers tasks in one thread, in batches.

    Parameters
    ----------
    observe
        Called with the number of requests of each batch.
    """

    def __init__(self, settings: ServeSettings, observe: Callable[[int], None] = lambda size: None) -> None:
        self._settings, self._observe = settings, observe
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(settings.queue)
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    def submit(self, served: Served, task: Task | Callable[[], Any]) -> Future[Any]:
        """Queue a task for one release; BusyError if too many wait."""
        future: Future[Any] = Future()
        try:
            self._queue.put_nowait(_Waiting(served, task, future))
        except queue.Full:
            raise BusyError("Too many requests wait. Try again in a second.") from None
        return future

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._queue.qsize()

    def close(self) -> None:
        """Answer what waits, then stop."""
        self._queue.put(None)
        self._thread.join(self._settings.shutdown_s)

    def _run(self) -> None:
        import torch

        torch.set_num_threads(self._settings.threads)
        while (first := self._queue.get()) is not None:
            batch = [first, *self._more(first)]
            self._observe(len(batch))
            groups: dict[int, list[_Waiting]] = {}
            for waiting in batch:
                # A request that timed out is not computed any more.
                if waiting.future.set_running_or_notify_cancel():
                    groups.setdefault(id(waiting.served), []).append(waiting)
            for group in groups.values():
                self._answer(group)

    def _more(self, first: _Waiting) -> list[_Waiting]:
        found: list[_Waiting] = []
        weight = _weight(first)
        while weight < self._settings.batch_candidates:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                self._queue.put(None)
                break
            found.append(waiting)
            weight += _weight(waiting)
        return found

    def _answer(self, group: list[_Waiting]) -> None:
        """Answer requests of one release; where the batch fails, one by one, so that one cannot fail the others."""
        together = [waiting for waiting in group if isinstance(waiting.task, Task)]
        try:
            answers = compute(group[0].served, [w.task for w in together if isinstance(w.task, Task)], self._settings)
            for waiting, answer in zip(together, answers, strict=True):
                waiting.future.set_result(answer)
        except Exception as error:
            if len(together) == 1:
                together[0].future.set_exception(error)
            else:
                for waiting in together:
                    self._answer([waiting])
        for waiting in group:
            if not isinstance(waiting.task, Task):
                try:
                    waiting.future.set_result(waiting.task())
                except Exception as error:
                    waiting.future.set_exception(error)


def _weight(waiting: _Waiting) -> int:
    task = waiting.task
    return max(task.retrieve or 0, len(task.item_ids), 1) if isinstance(task, Task) else 1


def compute(served: Served, tasks: Sequence[Task], settings: ServeSettings) -> list[Outcome]:
    """Answer tasks of one release together, as of one moment.

    Raises
    ------
    NotFoundError
        If a task needs an index or a ranker that the release has not.
    ConfigError
        If a filter or a formula does not fit.
    """
    if not tasks:
        return []
    now = settings.moment()
    users = _users(served, tasks, now)
    found = _retrieve(served, tasks, users, now)
    places = [number for number, task in enumerate(tasks) if task.rank]
    scored: dict[int, tuple[Rows, np.ndarray, dict[str, np.ndarray]]] = {}
    if places:
        if not served.rankers:
            raise NotFoundError("The release holds no ranker. Release one, or ask /v1/retrieve.")
        questions = [Question(tasks[at].user_id, found[at][0], tasks[at].context) for at in places]
        rows = served.rows(questions, now, {view: vectors.take(places) for view, vectors in users.items()})
        scores = served.score(rows)
        scores["similarity"] = _similarity(served, rows)
        for number, at in enumerate(places):
            mine = np.flatnonzero(rows.who == number)
            scored[at] = rows, mine, {name: values[mine] for name, values in scores.items()}
    outcomes = []
    for at, task in enumerate(tasks):
        items, similarity, fallback = found[at]
        if at not in scored:
            outcomes.append(Outcome(items, {"similarity": similarity}, fallback, now))
            continue
        rows, mine, parts = scored[at]
        parts = {"score": _score(task.formula, parts), **parts}
        order = np.arange(len(items))
        if task.keep is not None:
            order = np.argsort(-parts["score"], kind="stable")[: task.keep]
        chosen = {name: values[order] for name, values in parts.items()}
        outcomes.append(Outcome([items[place] for place in order], chosen, fallback, now, rows, mine[order]))
    return outcomes


def _score(formula: Formula | None, parts: dict[str, np.ndarray]) -> np.ndarray:
    if formula is not None:
        return formula.apply(parts)
    rates = [parts[name] for name in ("ctr", "cvr") if name in parts]
    return np.prod(rates, axis=0) if rates else parts["similarity"]


def _similarity(served: Served, rows: Rows) -> np.ndarray:
    """Return the inner product of user and item in the space of the index; 0 where one of them has no vector."""
    version = served.index_version
    if version is None:
        return np.zeros(len(rows.who))
    users, items = rows.vectors[embedding_view("user", version)], rows.vectors[embedding_view("item", version)]
    products = np.einsum("nd,nd->n", users.values[rows.who], items.values).astype(np.float64)
    return np.where(users.found[rows.who] & items.found, products, 0.0)


def _users(served: Served, tasks: Sequence[Task], now: datetime) -> dict[str, Vectors]:
    """Return every task's user in the space of the index, by view: retrieval and ranking share what is read."""
    if served.index_version is None:
        return {}
    view = embedding_view("user", served.index_version)
    return {view: served.users.vectors(view, [task.user_id for task in tasks], now)}


def _retrieve(
    served: Served, tasks: Sequence[Task], known: Mapping[str, Vectors], now: datetime
) -> list[tuple[list[Any], np.ndarray, str | None]]:
    """Return each task's items, their similarity and whether the user was unknown."""
    found: list[tuple[list[Any], np.ndarray, str | None]] = [
        (list(task.item_ids), np.zeros(len(task.item_ids)), None) for task in tasks
    ]
    asking = [at for at, task in enumerate(tasks) if task.retrieve is not None]
    if not asking:
        return found
    candidates, version = served.candidates, served.index_version
    if candidates is None or version is None:
        raise NotFoundError(
            "The release holds no item index. Release a retrieval consumer, or bring items to /v1/rank."
        )
    users = known[embedding_view("user", version)].take(asking)
    own = candidates.own(served.users.choices([tasks[at].user_id for at in asking], now))
    space = served.release.versions[version]
    most = [(tasks[at].retrieve or 0) + len(tasks[at].exclude) for at in asking]
    among = [candidates.among(tasks[at].filters) for at in asking]
    plain = [number for number in range(len(asking)) if among[number] is None and users.found[number]]
    shared: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    if plain:
        # Those without a filter are searched together.
        positions, scores = candidates.search(
            users.values[plain], space, max(most[number] for number in plain), None, own and own.take(plain)
        )
        shared = {number: (positions[row], scores[row]) for row, number in enumerate(plain)}
    for number, at in enumerate(asking):
        fallback = None
        if number in shared:
            places, scores = shared[number]
        elif users.found[number]:
            mine = own and own.take([number])
            both = candidates.search(users.values[[number]], space, most[number], among[number], mine)
            places, scores = both[0][0], both[1][0]
        else:
            places, fallback = candidates.popular(most[number], among[number]), "popular"
            scores = np.zeros(len(places))
        kept = places >= 0
        items = candidates.ids.take(candidates_array(places[kept])).to_pylist()
        left = set(tasks[at].exclude)
        wanted = [place for place, item in enumerate(items) if item not in left][: tasks[at].retrieve]
        found[at] = [items[place] for place in wanted], scores[kept][wanted].astype(np.float64), fallback
    return found


def candidates_array(positions: np.ndarray) -> Any:
    """Return positions as Arrow takes them."""
    import pyarrow as pa

    return pa.array(positions.astype(np.int64))
