"""A fresh database per test, copied from a migrated template while the test before it still runs.

Synchronous outside, so that it does not matter which plugin drives the test's event loop: one connection on a loop in
a thread of its own makes and drops databases. Which server that is, is decided in `postgres`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import secrets
import threading
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

__all__ = ["Databases"]

T = TypeVar("T")

logger = logging.getLogger("holdfast")

_AHEAD: Final = 2
"""Databases made before they are asked for; each is some 8 MB on disk."""

_TEMPLATE_LOCK: Final = 0x686F6C64
_SESSION_LOCK: Final = 0x686F6C65
"""First halves of advisory locks: "hold", and its neighbour."""


class Databases:
    """Makes databases on one server, and drops those that are left when it is left.

    Thread-safe and synchronous. What a killed session could not drop, the next one does.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._tag = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._ready: deque[Future[str]] = deque()
        self._template: str | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="holdfast test databases", daemon=True)

    def __repr__(self) -> str:
        return f"<Databases: session {self._tag}>"

    def __enter__(self) -> Databases:
        self._thread.start()
        try:
            self._submit(self._open()).result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._submit(self._close()).result()
        finally:
            self._stop()

    def take(self, *, migrated: bool = True) -> str:
        """The DSN of a database nobody has used; with the schema `holdfast` in it, unless `migrated` is false."""
        if not migrated:
            return self._url(self._submit(self._make("template0")).result())
        if not self._ready:
            self._prepare()
        name = self._ready.popleft().result()
        while len(self._ready) < _AHEAD:
            self._prepare()
        return self._url(name)

    def give_back(self, dsn: str) -> None:
        """Drops it in the background, whoever is still connected."""
        self._submit(self._drop(urlsplit(dsn).path.removeprefix("/")))

    def _url(self, database: str) -> str:
        return urlunsplit(urlsplit(self._dsn)._replace(path=f"/{database}"))

    def _prepare(self) -> None:
        self._ready.append(self._submit(self._copy()))

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self._turn = asyncio.Lock()
        self._connection = await asyncpg.connect(self._dsn)
        await self._connection.execute(
            "select pg_advisory_lock_shared($1, $2)", _SESSION_LOCK, _number(self._tag)
        )
        await self._sweep()

    async def _close(self) -> None:
        async with self._turn:
            for name in await self._list(f"holdfast_test_{self._tag}_"):
                await self._connection.execute(f'drop database if exists "{name}" with (force)')
            await self._connection.close()

    async def _sweep(self) -> None:
        """Drops what belongs to sessions that are gone: their lock on their tag fell with them."""
        for name in await self._list("holdfast_test_"):
            tag = name.split("_")[2]
            if await self._connection.fetchval("select pg_try_advisory_lock($1, $2)", _SESSION_LOCK, _number(tag)):
                await self._connection.execute(f'drop database if exists "{name}" with (force)')
                await self._connection.execute("select pg_advisory_unlock($1, $2)", _SESSION_LOCK, _number(tag))

    async def _list(self, prefix: str) -> list[str]:
        rows = await self._connection.fetch("select datname from pg_database where starts_with(datname, $1)", prefix)
        return [row["datname"] for row in rows]

    async def _copy(self) -> str:
        async with self._turn:
            if self._template is None:
                self._template = await self._prepare_template()
        return await self._make(self._template)

    async def _make(self, template: str) -> str:
        name = f"holdfast_test_{self._tag}_{next(self._numbers)}"
        async with self._turn:
            await self._connection.execute(f'create database "{name}" template "{template}" strategy file_copy')
        return name

    async def _drop(self, name: str) -> None:
        async with self._turn:
            await self._connection.execute(f'drop database if exists "{name}" with (force)')

    async def _prepare_template(self) -> str:
        """Named by the text of the schema, so that sessions of one version share it, and only they."""
        name = f"holdfast_template_{_fingerprint()}"
        key = _number(name.rsplit("_", 1)[1])
        await self._connection.execute("select pg_advisory_lock($1, $2)", _TEMPLATE_LOCK, key)
        try:
            if name not in await self._list(name):
                await self._build(name)
        finally:
            await self._connection.execute("select pg_advisory_unlock($1, $2)", _TEMPLATE_LOCK, key)
        return name

    async def _build(self, name: str) -> None:
        draft = f"holdfast_test_{self._tag}_template"
        await self._connection.execute(f'create database "{draft}" template template0 strategy file_copy')
        connection = await asyncpg.connect(self._url(draft))
        try:
            await _migrate(connection)
        finally:
            await connection.close()
        # Renamed when it is whole, so that a session killed half way leaves no half a template.
        await self._connection.execute(f'alter database "{draft}" rename to "{name}"')
        await self._connection.execute(f'alter database "{name}" allow_connections false')


def _number(tag: str) -> int:
    """Eight hexadecimal digits as PostgreSQL's integer."""
    return int.from_bytes(bytes.fromhex(tag), signed=True)


def _fingerprint() -> str:
    from holdfast._sql import statements

    schema = repr((statements.migrations("holdfast"), statements.functions("holdfast")))
    return hashlib.sha256(schema.encode()).hexdigest()[:8]


async def _migrate(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    from holdfast._sql.migrate import migrate

    await migrate(connection, "holdfast")
