"""Redis commands as packed bytes over a connection of redis-py, which has done TLS, authentication and database.

redis-py builds one Python object per argument and per reply; here the commands of thousands of rows are one buffer
made by Arrow, and hiredis reads the replies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feature_repo.contracts.errors import MissingExtraError, OnlineStoreError
from feature_repo.stores import wire_pieces

try:
    import hiredis
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtraError("Redis needs its client: install feast[redis] (redis and hiredis).") from error

if TYPE_CHECKING:
    from redis import ConnectionPool, Redis

_MORE = object()
_READ_BYTES = 1 << 18


class Exchange:
    """One connection of a client's pool, held while packed commands are sent and their replies read."""

    def __init__(self, connection: Any, address: str) -> None:
        self._socket = connection._get_socket()
        self._reader = hiredis.Reader(notEnoughData=_MORE)
        self._address = address

    def ask(self, commands: Sequence[memoryview | bytes], replies: int) -> list[Any]:
        """Send packed commands and return their replies, in order.

        Raises
        ------
        OnlineStoreError
            If the server answers any of them with an error; the message holds the first.
        """
        # Redis reads on while its replies wait, so that all can be sent before any is read.
        for part in commands:
            self._socket.sendall(part)
        found: list[Any] = []
        reader, more = self._reader, _MORE
        while len(found) < replies:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise redis.ConnectionError("the server closed the connection")
            reader.feed(data)
            found.extend(itertools.takewhile(lambda reply: reply is not more, iter(reader.gets, more)))
        for reply in found:
            if isinstance(reply, hiredis.ReplyError):
                raise OnlineStoreError(f"Redis at {self._address} refuses: {reply}. {_remedy(str(reply))}")
        return found


def pool_of(client: Redis) -> ConnectionPool:
    """Return a pool with a client's settings that fails at once: what is tried again is said by its user."""
    pool = client.connection_pool
    return redis.ConnectionPool(
        connection_class=pool.connection_class, **{**pool.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
    )


@contextmanager
def exchange(pool: ConnectionPool) -> Iterator[Exchange]:
    """Take a connection from a pool; give it back clean, or close it if anything went wrong.

    Raises
    ------
    OnlineStoreError
        If the server cannot be reached, refuses the credentials, or breaks off.
    """
    settings = pool.connection_kwargs
    address = settings.get("path") or f"{settings.get('host')}:{settings.get('port')}"
    connection = None
    try:
        connection = pool.get_connection()
        yield Exchange(connection, address)
    except BaseException as error:
        if connection is not None:
            # Replies may still be on their way: nobody may read them as answers to something else.
            connection.disconnect()
        if isinstance(error, (redis.RedisError, OSError, hiredis.HiredisError)):
            raise OnlineStoreError(f"Redis at {address}: {error}. {_remedy(str(error), error)}") from error
        raise
    finally:
        if connection is not None:
            pool.release(connection)


def command(name: str, rows: int, *arguments: pa.Array | bytes) -> pa.Array:
    """Return one packed command per row: large binary [N].

    Parameters
    ----------
    arguments
        Large binary arrays of `rows` rows, or bytes that are the same for every row.
    """
    fixed = f"*{len(arguments) + 1}\r\n".encode() + _bulk(name.encode())
    pieces: list[wire_pieces.Piece] = []
    for argument in arguments:
        if isinstance(argument, bytes):
            fixed += _bulk(argument)
            continue
        header = wire_pieces.by_length(wire_pieces.lengths_of(argument), partial(_opened, fixed))
        pieces += [header, argument]
        fixed = b"\r\n"
    return wire_pieces.join(rows, *pieces, wire_pieces.scalar(fixed))


def _opened(before: bytes, length: int) -> bytes:
    return before + f"${length}\r\n".encode()


def _bulk(value: bytes) -> bytes:
    return f"${len(value)}\r\n".encode() + value + b"\r\n"


def _remedy(message: str, error: BaseException | None = None) -> str:
    if isinstance(error, redis.AuthenticationError) or any(
        sign in message for sign in ("NOAUTH", "WRONGPASS", "NOPERM", "AUTH")
    ):
        return "Correct username and password in online_store.connection_string (host:port,username=...,password=...)."
    if isinstance(error, (TimeoutError, redis.TimeoutError)):
        return (
            "It took longer than socket_timeout in online_store.connection_string allows: allow more, or wait until it "
            "is less busy, and run the command again."
        )
    if "OOM" in message:
        return "Give Redis more memory (maxmemory) or shorten key_ttl_seconds, and run the command again."
    if "LOADING" in message:
        return "Wait until it has loaded its data, and run the command again."
    if "READONLY" in message:
        return "Name the primary in online_store.connection_string, not a replica."
    return "Start the server or correct online_store.connection_string, and run the command again."
