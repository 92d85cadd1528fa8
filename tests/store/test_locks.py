"""Rows of workflows are locked in order of id: while the lowest is held, none above it has been taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from holdfast._sql.migrate import migrate
from holdfast._store.commits import Continue, End, OutsideSend, Owner, Record, Start
from holdfast._store.connection import Connection
from tests.processes import connect
from tests.runtime.witness import until
from tests.store.test_plans import SQL, commit, connection

__all__ = ["connection"]

IDS = ("a", "b", "c")
Act = Callable[[Connection, int], Coroutine[Any, Any, object]]


def ends(*statuses: int | None) -> Act:
    """The ends of c, b and a in one batch; None: it goes on."""

    async def act(connection: Connection, executor: int) -> None:
        records: list[Record] = []
        for one, status in zip(reversed(IDS), statuses, strict=True):
            owner = Owner(one, 1)
            if status is None:
                records.append(Continue(owner=owner, name="w", input=b"[]"))
            else:
                records.append(End(owner=owner, status=status, output=None if status == 5 else b"1"))
        await commit(connection, executor, *records)

    return act


async def settle(connection: Connection, executor: int) -> None:
    await connection.execute("update holdfast.executors set name = name")
    await connection.execute(SQL["workflows.settle"], executor, [*reversed(IDS)], [1] * 3)


async def fence(connection: Connection, executor: int) -> None:
    await connection.execute(SQL["executors.fence"], executor, "channel", True)


async def cancel_in_one_transaction(connection: Connection, executor: int) -> None:
    async with connection.transaction():
        await connection.execute("select holdfast.cancel('b'), holdfast.cancel('c')")


async def begin(connection: Connection) -> int:
    """Workflows that run, in the table in reverse order of their ids; a is a child of c."""
    executor: int = await connection.fetchval("select holdfast.register_executor('test', null)")
    for one in reversed(IDS):
        await commit(connection, executor, Start(id=one, name="w", token=uuid4(), here=True, input=b"[]"))
    await connection.execute(
        "update holdfast.workflows set parent_id = 'c', parent_step = '1' where id = 'a'"
    )
    return executor


async def somebody_waits(connection: Connection) -> bool:
    return bool(
        await connection.fetchval(
            "select count(*) > 0 from pg_stat_activity "
            "where wait_event_type = 'Lock' and datname = current_database()"
        )
    )


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(ends(3, 3, 3), id="ends"),
        pytest.param(ends(3, 5, 3), id="a cancelled one and others"),
        pytest.param(ends(None, 3, 3), id="one that goes on and others"),
        settle,
        fence,
        cancel_in_one_transaction,
    ],
)
async def test_rows_are_locked_in_order_of_id(connection: Connection, dsn: str, act: Act) -> None:
    executor = await begin(connection)
    holder, witness = await connect(dsn), await connect(dsn)
    try:
        async with holder.transaction():
            await holder.execute("select from holdfast.workflows where id = 'a' for update")
            acting = asyncio.create_task(act(connection, executor))
            await until(lambda: somebody_waits(witness), "the lowest to be waited for")
            free = await witness.fetch(
                "select id from holdfast.workflows where id > 'a' order by id for update skip locked"
            )
            assert [row["id"] for row in free] == ["b", "c"]
        await acting
    finally:
        await holder.close()
        await witness.close()


async def test_the_order_is_that_of_bytes_whatever_the_database_s_collation_is(empty_dsn: str) -> None:
    """In the order of most languages "a" comes before "B"."""
    admin = await connect(empty_dsn)
    name = f"collated_{uuid4().hex[:8]}"
    try:
        await admin.execute(
            f"create database {name} template template0 locale_provider icu icu_locale 'en-US'"
        )
    except asyncpg.PostgresError as error:
        await admin.close()
        pytest.skip(f"this server has no ICU: {type(error).__name__}")
    sides = [await asyncpg.connect(empty_dsn, database=name) for _ in range(3)]
    first, second, witness = sides
    try:
        await migrate(first, "holdfast")
        starts = [Start(id=one, name="w", token=uuid4(), here=False, input=b"[]") for one in ("a", "B")]
        async with first.transaction():
            await first.execute(
                "insert into holdfast.workflows (id, name, status, start_token, input, created_at) "
                "values ('B', 'w', 0, gen_random_uuid(), '[]', now())"
            )
            acting = asyncio.create_task(commit(second, 1, *starts))
            await until(lambda: somebody_waits(witness), "B to be waited for")
            # Nobody has begun to insert the other.
            await witness.execute("set lock_timeout = '5s'")
            await commit(witness, 2, starts[0], lane=2)
        await acting
        # Of messages, by the dedup keys that they hold.
        sends = [OutsideSend(to=one, topic="t", payload=b"1", token=uuid4(), key="k") for one in ("a", "B")]
        async with first.transaction():
            await commit(first, 1, sends[1], lane=3)
            acting = asyncio.create_task(commit(second, 1, *sends))
            await until(lambda: somebody_waits(witness), "B's key to be waited for")
            await commit(witness, 2, sends[0], lane=2)
        await acting
    finally:
        for side in sides:
            await side.close()
        await admin.execute(f"drop database {name} with (force)")
        await admin.close()
