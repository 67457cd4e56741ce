"""The HTTP side: routes, limits, errors. What is computed is in `worker`."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from feature_repo.contracts.errors import (
    BusyError,
    ConfigError,
    HeadwaterError,
    InputDataError,
    NotFoundError,
    NotReadyError,
)
from jobs.serving import schemas
from jobs.serving.feature_log import FeatureLog
from jobs.serving.formula import Formula
from jobs.serving.guard import Guard, problem
from jobs.serving.holder import Holder
from jobs.serving.metrics import Metrics
from jobs.serving.rows import EPOCH, MICROSECOND
from jobs.serving.served import Served, one_vector
from jobs.serving.settings import TOKEN_VARIABLE, VARIABLE, ServeSettings
from jobs.serving.worker import Outcome, Task, Worker, compute

logger = logging.getLogger("headwater.serve")
TITLE = "Headwater"
ABOUT = "Retrieval and ranking with one release: embeddings, index and rankers that belong together."
_CODES: dict[int | str, str] = {
    400: "The body is no JSON.",
    401: "No or another bearer token.",
    404: "The release does not hold what this needs.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    422: "The request does not fit; `details` says where.",
    503: "Nothing is served yet, or too many requests wait.",
    504: "No answer in time.",
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.ErrorAnswer, "description": text} for code, text in _CODES.items()
}
_STATUS: tuple[tuple[type[HeadwaterError], int, str], ...] = (
    (NotFoundError, 404, "not_in_release"),
    (ConfigError, 422, "invalid"),
    (InputDataError, 422, "invalid"),
    (BusyError, 503, "busy"),
    (NotReadyError, 503, "not_ready"),
)


class Serving:
    """The parts of one process, put together."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.worker = Worker(settings, lambda size: self.metrics.batch.observe(size))
        self.log = FeatureLog(settings, self.metrics.logged.inc, self.metrics.lost.inc)
        self.holder = Holder(settings, warm=self._warm, switched=self._switched)

    def close(self) -> None:
        """Stop following the pointer, answer what waits, write the log."""
        self.holder.close()
        self.worker.close()
        self.log.close()

    async def ask(self, path: str, served: Served, task: Task) -> dict[str, Any]:
        """Answer one task by the given release; the answer as plain values."""
        outcome: Outcome = await self._computed(served, task)
        request_id = uuid.uuid4().hex
        self.log.offer(served, path, request_id, outcome)
        self.metrics.items.labels(path).inc(len(outcome.item_ids))
        if outcome.fallback:
            self.metrics.unknown.inc()
        names = list(outcome.scores)
        columns = [values.tolist() for values in outcome.scores.values()]
        answer: dict[str, Any] = {
            "request_id": request_id,
            "release": served.release.name,
            "moment": outcome.moment.isoformat(),
            "items": [
                {"item_id": item, **dict(zip(names, row, strict=True))}
                for item, *row in zip(outcome.item_ids, *columns, strict=True)
            ],
        }
        if ignored := sorted(task.context.keys() - served.context_names):
            answer["ignored"] = ignored
            self.metrics.ignored.inc()
        if task.retrieve is not None and served.candidates is not None:
            answer |= {"index_snapshot": served.candidates.notes["snapshot_id"], "fallback": outcome.fallback}
        return answer

    async def vectors(self, served: Served, body: schemas.EmbeddingsRequest) -> dict[str, Any]:
        """Answer with vectors."""
        version = body.version or served.index_version or next(iter(served.release.versions))
        ids, now = self.ids(served, body.ids), self.settings.moment()
        dim, read = await self._computed(served, lambda: one_vector(served, body.entity, version, ids, now))
        found = read.found.tolist()
        clocks = [
            (EPOCH + clock * MICROSECOND).isoformat() if clock >= 0 else None for clock in read.available_us.tolist()
        ]
        return {
            "request_id": uuid.uuid4().hex,
            "release": served.release.name,
            "moment": now.isoformat(),
            "version": version,
            "space_id": served.release.versions[version],
            "dim": dim,
            "found": found,
            "available_at": clocks,
            "vectors": [vector if there else None for vector, there in zip(read.values, found, strict=True)],
        }

    def ids(self, served: Served, ids: Sequence[Any]) -> list[Any]:
        """Return ids of the type that this log has, no more than allowed; ConfigError otherwise."""
        if len(ids) > self.settings.max_candidates:
            raise ConfigError(f"{len(ids):,} items are more than the {self.settings.max_candidates:,} allowed here.")
        wanted = int if served.integer_ids else str
        if not all(isinstance(value, wanted) for value in ids):
            raise ConfigError(f"Ids of this log are {'whole numbers' if served.integer_ids else 'text'}.")
        return list(ids)

    async def _computed(self, served: Served, task: Task | Callable[[], Any]) -> Any:
        future = self.worker.submit(served, task)
        return await asyncio.wait_for(asyncio.wrap_future(future), self.settings.timeout_s)

    def _warm(self, served: Served) -> None:
        user: Any = 0 if served.integer_ids else ""
        item = [0] if served.integer_ids else [""]
        if served.candidates is not None and len(served.candidates):
            item = served.candidates.ids[:1].to_pylist()
            compute(served, [Task(user, retrieve=10, rank=bool(served.rankers))], self.settings)
        if served.rankers:
            compute(served, [Task(user, item)], self.settings)

    def _switched(self, served: Served) -> None:
        self.metrics.switches.inc()
        self.metrics.release.set(served.key[0] or 0)
        if served.candidates is not None and "recall_at_100" in served.candidates.notes:
            self.metrics.recall.set(served.candidates.notes["recall_at_100"])


def from_environment() -> FastAPI:
    """Make the application of one worker process."""
    from jobs.cli_output import quiet

    quiet()
    settings = ServeSettings.model_validate_json(os.environ[VARIABLE])
    token = os.environ.get(TOKEN_VARIABLE)
    return create_app(settings.model_copy(update={"token": SecretStr(token)}) if token else settings)


def create_app(settings: ServeSettings) -> FastAPI:
    """Make the application for some settings."""
    serving = Serving(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving.holder.start()
        yield
        await asyncio.to_thread(serving.close)

    app = FastAPI(
        title=TITLE,
        description=ABOUT,
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False))] if settings.token else [],
    )
    app.state.serving = serving
    _add_routes(app, serving)
    _add_errors(app)

    def observe(path: str, status: int, seconds: float) -> None:
        # Paths that nobody serves would be a label each.
        known = path if path in {getattr(route, "path", None) for route in app.routes} else "other"
        serving.metrics.requests.labels(known, str(status)).inc()
        serving.metrics.seconds.labels(known).observe(seconds)

    app.add_middleware(Guard, settings=settings, observe=observe, in_flight=serving.metrics.in_flight.inc)
    return app


def _add_routes(app: FastAPI, serving: Serving) -> None:
    def json(value: Any) -> Response:
        # Vectors are thousands of numbers: as float32 they are written without a Python object each.
        return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    def task(served: Served, body: Any, path: str) -> Task:
        limit = serving.settings.max_candidates
        retrieve = {"/v1/retrieve": "k", "/v1/recommend": "candidates"}.get(path)
        count = getattr(body, retrieve) if retrieve else None
        if count is not None and count > limit:
            raise ConfigError(f"{retrieve} is {count:,}; at most {limit:,} are allowed here.")
        text = getattr(body, "formula", None)
        names = (*served.rankers, "similarity")
        return Task(
            user_id=serving.ids(served, [body.user_id])[0],
            item_ids=serving.ids(served, getattr(body, "item_ids", [])),
            context=getattr(body, "context", {}),
            retrieve=count,
            filters=getattr(body, "filters", {}),
            exclude=serving.ids(served, getattr(body, "exclude", [])),
            rank=path != "/v1/retrieve",
            formula=Formula(text, names) if text is not None else None,
            keep=body.k if path == "/v1/recommend" else None,
        )

    async def answered(path: str, body: Any) -> Response:
        served = serving.holder.served  # asked once: a switch falls between two requests
        return json(await serving.ask(path, served, task(served, body, path)))

    @app.post("/v1/retrieve", response_model=schemas.ItemsAnswer, responses=_ERRORS, tags=["serving"])
    async def retrieve(body: schemas.RetrieveRequest) -> Response:
        """Find the nearest items of a user; for a user without a vector the popular ones."""
        return await answered("/v1/retrieve", body)

    @app.post("/v1/rank", response_model=schemas.ItemsAnswer, responses=_ERRORS, tags=["serving"])
    async def rank(body: schemas.RankRequest) -> Response:
        """Score given items for a user, in the order of the request."""
        return await answered("/v1/rank", body)

    @app.post("/v1/recommend", response_model=schemas.ItemsAnswer, responses=_ERRORS, tags=["serving"])
    async def recommend(body: schemas.RecommendRequest) -> Response:
        """Find candidates, score them, answer with the best."""
        return await answered("/v1/recommend", body)

    @app.post("/v1/embeddings", response_model=schemas.EmbeddingsAnswer, responses=_ERRORS, tags=["serving"])
    async def embeddings(body: schemas.EmbeddingsRequest) -> Response:
        """Read vectors of users or items as of now."""
        return json(await serving.vectors(serving.holder.served, body))

    @app.get("/v1/release", response_model=schemas.ReleaseAnswer, responses=_ERRORS, tags=["serving"])
    async def release() -> Response:
        """Say what is served."""
        return json(release_answer(serving.holder.served))

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> Response:
        """Answer as long as the process lives."""
        return json({"status": "ok"})

    @app.get("/readyz", responses={503: _ERRORS[503]}, tags=["operation"])
    async def readyz() -> Response:
        """Answer 200 once a release is loaded; `problem` says why the pointer's newest move is not served yet."""
        held = serving.holder.served
        return json({"status": "ready", "release": held.release.name, "behind": serving.holder.problem is not None})

    @app.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """Return Prometheus metrics."""
        serving.metrics.waiting.set(serving.worker.waiting)
        return Response(serving.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def release_answer(served: Served) -> dict[str, Any]:
    """Return what a release holds as plain values."""
    return {
        "release": served.release.name,
        "created": served.release.created.isoformat(),
        "versions": served.release.versions,
        "consumers": {task: ranker.name for task, ranker in served.rankers.items()},
        "snapshots": served.snapshots,
        "index": served.candidates.notes if served.candidates else None,
        "context": sorted(served.context_names),
    }


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, code: str, message: str, details: list[str] | None = None) -> Response:
        headers = {"Retry-After": "1"} if status == 503 else {}
        return Response(problem(code, message, details), status, headers, "application/json")

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        # Where and why, but never the input itself: it may be anything.
        details = [f"{'.'.join(str(part)[:64] for part in item['loc'])}: {item['msg']}" for item in error.errors()[:20]]
        broken = any(item["type"] == "json_invalid" for item in error.errors())
        return answer(400 if broken else 422, "invalid", "The request does not fit.", details)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return answer(error.status_code, "refused", str(error.detail))

    @app.exception_handler(TimeoutError)
    async def late(_: Request, error: TimeoutError) -> Response:
        return answer(504, "timeout", "No answer in time. Ask for fewer candidates, or later.")

    @app.exception_handler(HeadwaterError)
    async def known(_: Request, error: HeadwaterError) -> Response:
        for kind, status, code in _STATUS:
            if isinstance(error, kind):
                # What is not ready names files and folders; that is for the log and for those who run the server.
                message = "Nothing is served yet." if kind is NotReadyError else str(error)
                return answer(status, code, message)
        logger.error("a request failed: %s", error)
        return answer(503, "unavailable", "A store behind the server does not answer; its log says why.")
