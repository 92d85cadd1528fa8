"""Executors as rows: one for each incarnation of a process that runs workflows, alive, silent or fenced."""

from datetime import datetime

import msgspec

from holdfast._sql.statements import Statements
from holdfast._store.connection import Connection


class ExecutorRow(msgspec.Struct, frozen=True, gc=False):
    """What can be seen of another executor's life: `beats_missed` and `leases_missed` are the age of its
    heartbeat, by the database's clock, in heartbeats and in leases of that executor.
    """

    id: int
    name: str
    locked: bool
    beats_missed: float
    leases_missed: float
    heartbeat_at: datetime


class Beat(msgspec.Struct, frozen=True, gc=False):
    """The answer to a heartbeat: not fenced, and does the session hold the lock?"""

    alive: bool
    locked: bool
    suspects: bool


async def register(
    connection: Connection,
    sql: Statements,
    name: str,
    app_version: str | None,
    heartbeat: float,
    lease: float,
) -> int:
    """A new executor, whose lock this session holds; its id."""
    return int(await connection.fetchval(sql["executors.register"], name, app_version, heartbeat, lease))


async def beat(
    connection: Connection, sql: Statements, executor: int | None, held: bool, channel: str, bell: str
) -> Beat:
    """Heartbeat and bell to oneself in one statement."""
    row = await connection.fetchrow(sql["executors.beat"], executor, held, channel, bell)
    assert row is not None
    return Beat(row[0], row[1], row[2])


async def list_executors(connection: Connection, sql: Statements, but: int | None) -> list[ExecutorRow]:
    """Executors that are not fenced."""
    return [ExecutorRow(*row) for row in await connection.fetch(sql["executors.list"], but)]


async def fence(
    connection: Connection, sql: Statements, executor: int, channel: str, *, graceful: bool = False
) -> int:
    """Nothing of the executor can land after this; its workflows are free. How many. `graceful`: it gives
    them back itself, so that its claims do not count against them [W13].
    """
    return int(await connection.fetchval(sql["executors.fence"], executor, channel, graceful))


async def evict(connection: Connection, sql: Statements, executor: int) -> int:
    """Ends the sessions that hold the executor's fence. How many."""
    return int(await connection.fetchval(sql["executors.evict"], executor))
