"""A fresh database per test, copied from a migrated template while the test before it still runs.

Synchronous outside, so that it does not matter which plugin drives the test's event loop: one connection, on
a loop in a thread of its own, makes and drops the databases. Which server that is, is decided in `postgres`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from holdfast._sql import migrate, statements
from holdfast.errors import ConfigurationError

__all__ = ["Databases"]

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
T = TypeVar("T")

_SCHEMA: Final = "holdfast"
_OLDEST: Final = 15
_AHEAD: Final = 2
"""Databases made before anybody asks; each takes some 8 MB."""

# First halves of advisory locks ("hold", and what follows); the second are a session's tag or a fingerprint.
_SESSION: Final = 0x686F6C64
_TEMPLATE: Final = _SESSION + 1
_BUILD: Final = _SESSION + 2

_DISCONNECTED: Final = (
    asyncpg.exceptions.AdminShutdownError,
    asyncpg.exceptions.InterfaceError,
    asyncpg.exceptions.InternalClientError,  # a statement was cut off in the middle
    asyncpg.exceptions.PostgresConnectionError,
    ConnectionError,
)


class Databases:
    """Makes databases on one server, and drops what is left of them when it is left.

    Safe to use from any thread, and together with other sessions on the same server. What a killed session
    could not drop, the next one does.
    """

    def __init__(self, dsn: str) -> None:
        self._worker = _Worker(dsn)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="holdfast databases", daemon=True)
        self._ready: deque[Future[str]] = deque()
        self._dsn = dsn

    def __repr__(self) -> str:
        return f"<Databases: {len(self._ready)} ready>"

    def __enter__(self) -> Databases:
        self._thread.start()
        try:
            self._submit(self._worker.open()).result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._submit(self._worker.close()).result()
        finally:
            self._stop()

    def take(self, *, migrated: bool = True) -> str:
        """The DSN of a new database: with the schema `holdfast` in it, or, not `migrated`, with nothing."""
        if not migrated:
            return _with_database(self._dsn, self._submit(self._worker.create_empty()).result())
        self._prepare(1)
        name = self._ready.popleft().result()
        self._prepare(_AHEAD)
        return _with_database(self._dsn, name)

    def give_back(self, dsn: str) -> None:
        """Drops it in the background, whoever is still connected."""
        self._submit(self._worker.drop(urlsplit(dsn).path.removeprefix("/")))

    def _prepare(self, wanted: int) -> None:
        while len(self._ready) < wanted:
            self._ready.append(self._submit(self._worker.create()))

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Worker:
    """What happens on the loop: one thing at a time, on one connection.

    The names hold the maintenance database's oid, because advisory locks only count within a database.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._tag = secrets.token_hex(4)
        self._fingerprint = _fingerprint()
        self._oid = 0
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._template: str | None = None

    async def open(self) -> None:
        connection = await self._connect()
        try:
            if connection.get_server_version().major < _OLDEST:
                raise ConfigurationError(f"the tests need a PostgreSQL {_OLDEST} or newer")
            await self._sweep(connection, "holdfast_test", _SESSION)
            await self._sweep(connection, "holdfast_template", _TEMPLATE)
        except BaseException:
            await connection.close()
            raise

    async def close(self) -> None:
        await self._do(self._drop_all)
        await (await self._connect()).close()

    async def create(self) -> str:
        return await self._do(self._copy_template)

    async def create_empty(self) -> str:
        return await self._do(lambda connection: self._copy(connection, "template0"))

    async def drop(self, name: str) -> None:
        await self._do(lambda connection: _drop(connection, name))

    async def _do(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        async with self._turn:
            try:
                return await work(await self._connect())
            except _DISCONNECTED:  # there are tests that end every session they see
                if self._connection is not None:
                    self._connection.terminate()
                    self._connection = None
                return await work(await self._connect())

    async def _connect(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self._dsn)
            self._oid = await self._connection.fetchval(
                "select oid from pg_database where datname = current_database()"
            )
            await _call(self._connection, "pg_advisory_lock_shared", _SESSION, self._tag)
            await _call(self._connection, "pg_advisory_lock_shared", _TEMPLATE, self._fingerprint)
        return self._connection

    async def _sweep(self, connection: Connection, kind: str, lock: int) -> None:
        """Drops what only sessions that are gone have used: their locks fell with them."""
        for name in await _list(connection, f"{kind}_{self._oid}_[0-9a-f]{{8}}(_[0-9]+)?"):
            owner = name.split("_")[3]
            if owner != self._fingerprint and await _call(connection, "pg_try_advisory_lock", lock, owner):
                await _drop(connection, name)
                await _call(connection, "pg_advisory_unlock", lock, owner)

    async def _drop_all(self, connection: Connection) -> None:
        for name in await _list(connection, f"holdfast_test_{self._oid}_{self._tag}_[0-9]+"):
            await _drop(connection, name)

    async def _copy_template(self, connection: Connection) -> str:
        if self._template is None:
            self._template = await self._find_template(connection)
        return await self._copy(connection, self._template)

    async def _copy(self, connection: Connection, template: str) -> str:
        name = f"holdfast_test_{self._oid}_{self._tag}_{next(self._numbers)}"
        # As files and not through the log: a third of the time where nothing is flushed.
        await connection.execute(f'create database "{name}" template "{template}" strategy file_copy')
        return name

    async def _find_template(self, connection: Connection) -> str:
        """One for all sessions with this text of the schema; it stays, and the next session starts warm."""
        name = f"holdfast_template_{self._oid}_{self._fingerprint}"
        await _call(connection, "pg_advisory_lock", _BUILD, self._fingerprint)
        try:
            if not await _list(connection, name):
                await self._build(connection, name)
        finally:
            await _call(connection, "pg_advisory_unlock", _BUILD, self._fingerprint)
        return name

    async def _build(self, connection: Connection, name: str) -> None:
        draft = await self._copy(connection, "template0")
        within = await asyncpg.connect(_with_database(self._dsn, draft))
        try:
            await migrate.migrate(within, _SCHEMA)
        finally:
            await within.close()
        # The first session after a change writes down what it read of the catalogue; the copies get it too.
        await (await asyncpg.connect(_with_database(self._dsn, draft))).close()
        # Under its name only when it is whole: nobody finds the half of a session that was killed.
        await connection.execute(f'alter database "{draft}" allow_connections false')
        await connection.execute(f'alter database "{draft}" rename to "{name}"')


async def _list(connection: Connection, pattern: str) -> list[str]:
    rows = await connection.fetch("select datname from pg_database where datname ~ $1", f"^{pattern}$")
    return [row["datname"] for row in rows]


async def _drop(connection: Connection, name: str) -> None:
    await connection.execute(f'drop database if exists "{name}" with (force)')


async def _call(connection: Connection, function: str, lock: int, tag: str) -> bool | None:
    number = int.from_bytes(bytes.fromhex(tag), signed=True)
    result: bool | None = await connection.fetchval(f"select {function}($1, $2)", lock, number)
    return result


def _fingerprint() -> str:
    texts = repr((statements.migrations(_SCHEMA), statements.functions(_SCHEMA)))
    return hashlib.sha256(texts.encode()).hexdigest()[:8]


def _with_database(dsn: str, database: str) -> str:
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))
