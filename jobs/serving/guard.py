"""What every request passes before it reaches a route: token, size, time to send its body, a count of its outcome."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.serving.settings import ServeSettings

OPEN = ("/healthz", "/readyz")
logger = logging.getLogger("headwater.serve")


def problem(code: str, message: str, details: list[str] | None = None) -> bytes:
    """Return the body of an answer that is none, in ASCII: it may name what a client sent in broken Unicode."""
    return json.dumps({"error": {"code": code, "message": message, "details": details or []}}).encode("ascii")


class Guard:
    """Middleware: refuses what has no token (401), is too large (413) or too slow (408); hides what went wrong inside.

    Parameters
    ----------
    observe
        Called with path, status and seconds of every answer.
    in_flight
        Called with 1 when a request has arrived whole, and with -1 when it has been answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServeSettings,
        observe: Callable[[str, int, float], None],
        in_flight: Callable[[int], None],
    ) -> None:
        self._app, self._settings, self._observe, self._in_flight = app, settings, observe, in_flight
        self._limit = settings.max_body_kb * 1024
        token = settings.token.get_secret_value() if settings.token else None
        self._expected = f"Bearer {token}".encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status, begun = time.perf_counter(), 500, False

        async def told(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
            await send(message)

        try:
            refused = self._refusal(scope)
            body = b"" if refused else await self._body(receive)
            if refused:
                await _answer(told, *refused)
            elif body is None:
                await _answer(told, 413, "too_large", f"The body is larger than {self._limit} bytes.")
            else:
                self._in_flight(1)
                try:
                    await self._app(scope, _replay(body, receive), told)
                finally:
                    self._in_flight(-1)
        except TimeoutError:
            await _answer(told, 408, "slow_request", "The body did not arrive in time.")
        except ConnectionError:
            status = 499
        except Exception:
            logger.exception("a request failed")
            if not begun:
                await _answer(told, 500, "internal", "The request failed; the server's log says why.")
        finally:
            self._observe(scope["path"], status, time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = {name: value for name, value in scope["headers"]}
        if self._expected is not None and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                return 401, "unauthorized", "Send the bearer token: Authorization: Bearer TOKEN."
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            return 413, "too_large", f"The body is larger than {self._limit} bytes."
        return None

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the whole body; None if it is too large."""
        parts, size, more = [], 0, True
        async with asyncio.timeout(self._settings.body_s):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError
                part = message.get("body", b"")
                size += len(part)
                if size > self._limit:
                    return None
                parts.append(part)
                more = message.get("more_body", False)
        return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, status: int, code: str, message: str) -> None:
    body = problem(code, message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
