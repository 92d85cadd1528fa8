"""What is sent to a workflow while it is deleted: refused or gone with it, and never left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Literal

import asyncpg
import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, connect
from tests.runtime.witness import until

Act = Callable[[hf.Client, Connection], Coroutine[Any, Any, None]]
SETTINGS = hf.Settings(hmac_keys=[b"k" * 32])


async def send(client: hf.Client, caller: Connection) -> None:
    await client.send("one", "late")


async def redeem(client: hf.Client, caller: Connection) -> None:
    await client.redeem(client.token("one", "topic", ttl=60), "late")


async def send_in_sql(client: hf.Client, caller: Connection) -> None:
    await caller.execute("select holdfast.send('one', null, '1')")


async def trim(client: hf.Client, caller: Connection) -> None:
    await client.trim_stream("one", "log", before=1)


@pytest.fixture
async def client(processes: Processes, database: Connection) -> hf.Client:
    client = await processes.client(settings=SETTINGS)
    await client.start(hf.WorkflowRef[[], None]("w")(), id="one")
    await client.cancel("one")
    return client


@asynccontextmanager
async def deletion(dsn: str) -> AsyncIterator[None]:
    """In the block the workflow `one` is deleted by a transaction that has not committed."""
    holder = await connect(dsn)
    try:
        async with holder.transaction():
            assert await holder.fetchval("select holdfast.delete_workflow('one', 1000, 'c')") == "deleted"
            yield
    finally:
        await holder.close()


async def waiting(database: Connection) -> bool:
    return bool(
        await database.fetchval(
            "select count(*) > 0 from pg_stat_activity "
            "where wait_event_type = 'Lock' and datname = current_database()"
        )
    )


async def left(database: Connection) -> list[Any]:
    tables = "select 'messages' from holdfast.messages union all select 'streams' from holdfast.streams"
    return await database.fetch(tables)


@pytest.mark.parametrize(
    ("act", "refusal"), [(send, hf.WorkflowNotFound), (redeem, hf.TokenRejected), (trim, hf.WorkflowNotFound)]
)
async def test_m2_what_comes_while_a_workflow_is_deleted_is_refused(
    client: hf.Client, database: Connection, dsn: str, act: Act, refusal: type[Exception]
) -> None:
    async with deletion(dsn):
        acting = asyncio.create_task(act(client, database))
        await until(lambda: waiting(database), "what comes to wait for the deletion")
    with pytest.raises(refusal):
        await acting
    assert await left(database) == []


async def test_m2_a_message_that_commits_while_its_workflow_is_deleted_goes_with_it(
    client: hf.Client, database: Connection, dsn: str
) -> None:
    caller = await connect(dsn)
    async with deletion(dsn):
        sending = asyncio.create_task(send_in_sql(client, caller))
        await until(lambda: waiting(database), "the message to wait for the deletion")
    await sending
    assert await left(database) == []
    await caller.close()


async def test_m2_a_message_of_an_open_transaction_goes_with_the_workflow_that_is_deleted(
    client: hf.Client, database: Connection, dsn: str
) -> None:
    caller = await connect(dsn)
    async with caller.transaction():
        await client.send("one", "late", conn=caller)
        await client.delete("one")
    assert await left(database) == []
    # To a new one of this id it is none of its messages; one that is sent to it is.
    await client.start(hf.WorkflowRef[[], None]("w")(), id="one")
    async with caller.transaction():
        await client.send("one", "in time", conn=caller)
    assert len(await client.messages("one")) == 1
    await caller.close()


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_send_to_what_goes_on_meanwhile_commits_in_every_isolation(
    client: hf.Client, database: Connection, dsn: str, isolation: Literal["repeatable_read", "serializable"]
) -> None:
    caller = await connect(dsn)
    await client.start(hf.WorkflowRef[[], None]("w")(), id="two")
    async with caller.transaction(isolation=isolation):
        await caller.execute("select from holdfast.workflows limit 1")
        await database.execute("update holdfast.workflows set epoch = epoch + 1 where id = 'two'")
        await client.send("two", "hello", conn=caller)
    assert len(await client.messages("two")) == 1
    transaction = caller.transaction(isolation=isolation)
    await transaction.start()
    await client.send("one", "late", conn=caller)
    await client.delete("one")
    with pytest.raises(asyncpg.SerializationError):
        await transaction.commit()
    assert len(await client.messages("two")) == 1
    await caller.close()


@pytest.mark.parametrize("act", [send, redeem, send_in_sql])
async def test_m1_a_deletion_takes_along_what_is_being_sent(
    client: hf.Client, database: Connection, dsn: str, act: Act
) -> None:
    await act(client, database)
    await client.delete("one")
    assert await left(database) == []
