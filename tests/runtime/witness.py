"""What tests of running workflows see: signals to wait for, and the tables.

Runtimes and their ends are made by `tests.processes`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import connect

PATIENCE = 15.0
"""Seconds after which what should have happened counts as not happening."""

quick = partial(hf.Settings, heartbeat=0.05, lease=8.0)
"""Settings under which a death is noticed within a fraction of a second."""


class Signals:
    """Remembers what `_observe.signal` told, and waits for it."""

    def __init__(self) -> None:
        self._heard: defaultdict[str, list[dict[str, object]]] = defaultdict(list)
        self._news = asyncio.Event()

    def __call__(self, name: str, facts: dict[str, object]) -> None:
        self._heard[name].append(facts)
        self._news.set()

    def times(self, name: str, **facts: object) -> int:
        """How often a signal has come with these facts."""
        return sum(facts.items() <= heard.items() for heard in self._heard[name])

    async def heard(self, name: str, times: int = 1, **facts: object) -> None:
        """Returns once the signal has come so many times with these facts."""
        try:
            async with asyncio.timeout(PATIENCE):
                while self.times(name, **facts) < times:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"in {PATIENCE:g} s no signal {name} {facts}") from None


@asynccontextmanager
async def held(dsn: str, table: str) -> AsyncIterator[None]:
    """Nothing can be written to a table inside the block: what is called gathers."""
    holder = await connect(dsn)
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(f"lock table holdfast.{table} in share mode")
    try:
        yield
    finally:
        await transaction.rollback()
        await holder.close()


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Looks again and again, for what only the database can tell."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not await condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"in {PATIENCE:g} s not {what}") from None


def executor_of(rt: hf.Runtime) -> int:
    """The number of the executor that a runtime is now."""
    executor = rt.executor.lease.executor
    assert executor is not None
    return executor


async def fence(database: Connection, rt: hf.Runtime) -> int:
    """Declares the executor of a living runtime dead, as another process would; its number."""
    executor = executor_of(rt)
    await database.execute("select holdfast.fence($1, $2)", executor, rt.engine.channel)
    return executor


async def journal(database: Connection, workflow_id: str) -> list[tuple[str, str, str]]:
    """Step id, kind and name of every completed call, in the order of their completion."""
    rows = await database.fetch(
        "select step_id, kind, name from holdfast.steps "
        "where workflow_id = $1 and finished_at is not null order by seq",
        workflow_id,
    )
    return [(row["step_id"], row["kind"], row["name"]) for row in rows]


async def state(database: Connection, workflow_id: str) -> str:
    """The status of a workflow, as the table has it."""
    return str(
        await database.fetchval("select status from holdfast.workflow_list where id = $1", workflow_id)
    )


SNAPSHOT = {
    "workflows": "select id, name, status, cancelling, parent_id, input, output, error "
    "from holdfast.workflow_list order by id",
    "journal": "select workflow_id, step_id, kind, name, "
    "case when kind in ('ask', 'recv', 'reply', 'reject') then (target is not null)::text else target end, "
    "outcome, attempts, finished_at is not null, "
    "case when kind <> 'value' then output end from holdfast.step_list order by workflow_id, step_id",
    "messages": "select workflow_id, topic, message, sender, dedup_key, request is not null, consumed_by "
    "from holdfast.message_list order by workflow_id, topic, id",
    "events": "select workflow_id, case when starts_with(key, '::reply:') then 'reply' else key end, "
    "revision, value, step_id from holdfast.event_list order by workflow_id, step_id, key, revision",
    "values": 'select workflow_id, key, "offset", value, attempt, step_id from holdfast.stream_list '
    'order by workflow_id, key, "offset"',
    "streams": "select workflow_id, key, closed_at is not null from holdfast.streams "
    "order by workflow_id, key",
}
Snapshot = dict[str, list[tuple[Any, ...]]]


async def snapshot(database: Connection) -> Snapshot:
    """Everything that workflows have done, without what differs from run to run: times, chance, owners."""
    return {name: [tuple(row) for row in await database.fetch(query)] for name, query in SNAPSHOT.items()}
