"""What a test of talking workflows is made of: processes that come and go, moments to wait for, rows.

A runtime or client of its own stands for a process: it has its own connections, listener and waiters.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

import asyncpg

import holdfast as hf
from holdfast import _keys
from holdfast._store.connection import Connection
from holdfast.testing.faults import Proxy

P = TypeVar("P", bound=hf.Client)
T = TypeVar("T")

PATIENCE = 20
"""Seconds after which a test says what it has waited for in vain."""

TABLES = {
    "workflows": "select id, name, status, output from holdfast.workflows order by id",
    "steps": "select * from holdfast.steps order by workflow_id, seq nulls last, step_id",
    "messages": "select * from holdfast.messages order by id",
    "events": "select * from holdfast.events order by workflow_id, key, revision",
    "stream_values": 'select * from holdfast.stream_values order by workflow_id, key, "offset"',
    "streams": "select * from holdfast.streams order by workflow_id, key",
}
Rows = dict[str, list[tuple[Any, ...]]]


class Processes:
    """Runtimes and clients of one database; those that are still there at the end of the test leave then."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._stacks: dict[hf.Client, AsyncExitStack] = {}
        self._wire = Proxy(dsn)

    async def runtime(
        self, *workflows: hf.Workflow[..., Any], dsn: str | None = None, settings: hf.Settings | None = None
    ) -> hf.Runtime:
        """A process that runs these workflows."""
        listen, dsn = (self._wire.dsn, self.dsn) if dsn is None else (None, dsn)
        return await self._enter(hf.Runtime(dsn, listen_dsn=listen, workflows=workflows, settings=settings))

    async def client(self, *, dsn: str | None = None, settings: hf.Settings | None = None) -> hf.Client:
        """A process that runs none."""
        listen, dsn = (self._wire.dsn, self.dsn) if dsn is None else (None, dsn)
        return await self._enter(hf.Client(dsn, listen_dsn=listen, settings=settings))

    @asynccontextmanager
    async def unheard(self, database: Connection) -> AsyncIterator[None]:
        """Ends the sessions of all listeners; they find back when the block is left, and not before."""
        self._wire.refuse()
        assert await terminate(database, "listener") > 0
        yield
        self._wire.heal()

    async def leave(self, process: hf.Client) -> None:
        """Ends one of them in good order: what runs there is given back."""
        await self._stacks.pop(process).aclose()

    async def __aenter__(self) -> Processes:
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wire.heal()
        for process in reversed(tuple(self._stacks)):
            await self.leave(process)
        await self._wire.__aexit__(None, None, None)

    async def _enter(self, process: P) -> P:
        stack = self._stacks[process] = AsyncExitStack()
        await stack.enter_async_context(process)
        return process


class Waits:
    """Remembers what the processes of this test have begun to wait for; a hook of `_observe`."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._more = asyncio.Event()

    def __call__(self, name: str, facts: dict[str, Any]) -> None:
        if name == "waiters.waiting":
            self._seen.update(set(facts["keys"]))
            self._more.set()

    def times(self, kind: str, workflow_id: str, name: str = "") -> int:
        """How often somebody has begun to wait for this."""
        return self._seen[_keys.wake_key(kind, workflow_id, name)]

    async def on(self, kind: str, workflow_id: str, name: str = "", *, times: int = 1) -> None:
        """Returns once somebody has begun to wait for this, so many times since the last `forget`."""
        async with asyncio.timeout(PATIENCE):
            while self.times(kind, workflow_id, name) < times:
                self._more.clear()
                await self._more.wait()

    def forget(self) -> None:
        """Counts from here."""
        self._seen.clear()


class Points:
    """Counts the points that are passed, and does something at some of them; a hook of `_observe`."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self._actions: list[tuple[str, int, Callable[[], object]]] = []

    def __call__(self, name: str) -> None:
        self.passed[name] += 1
        for action in tuple(self._actions):
            if action[:2] == (name, self.passed[name]):
                self._actions.remove(action)
                action[2]()

    def at(self, name: str, act: Callable[[], object], *, nth: int = 1) -> None:
        """Calls `act` when the point is passed for the nth time from now."""
        self._actions.append((name, self.passed[name] + nth, act))

    def kill(
        self, runtime: hf.Runtime, point: str, when: str, killed: asyncio.Event | None = None
    ) -> asyncio.Event:
        """Takes all workflows out of a runtime's hands, "before" or "after" the next commit behind a point.

        After: it is committed, and the code that called has not been told. The event is set when it is done.
        """
        killed = killed or asyncio.Event()

        def kill() -> None:
            runtime.executor.lost()
            killed.set()

        if when == "before":
            self.at(point, kill)
        else:
            self.at(point, lambda: self.at("writer.after_commit", kill))
        return killed


async def rows(connection: Connection, *tables: str) -> Rows:
    """What is in the tables, all of them unless some are named."""
    found = {}
    for table in tables or TABLES:
        found[table] = [tuple(row) for row in await connection.fetch(TABLES[table])]
    return found


async def terminate(connection: Connection, role: str) -> int:
    """Ends the sessions of a role (`listener`, `writer 0`, `lookups`) in this database; returns how many."""
    return len(
        await connection.fetch(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where datname = current_database() and application_name like $1",
            f"holdfast {role}%",
        )
    )


async def connect(dsn: str) -> Connection:
    """A connection of the test's own, beside what is tested."""
    connection: Connection = await asyncpg.connect(dsn)
    return connection


async def settled(rt: hf.Runtime) -> None:
    """Waits until nothing runs here: others may hear of an end before the process that committed it does."""
    async with asyncio.timeout(5):
        while rt.executor.runs:
            await asyncio.sleep(0)


async def within(seconds: float, awaited: Awaitable[T]) -> T:
    """What is awaited, in time or not at all."""
    async with asyncio.timeout(seconds):
        return await awaited
