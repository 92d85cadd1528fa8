"""`conn=`: starting and sending in the caller's own transaction."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import asyncpg
import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.plugin import MakeDatabase
from holdfast.types import PayloadContext
from tests.callers.conftest import Make
from tests.callers.shop import LAST, LETTERS, LOG, patient, shop
from tests.processes import Processes, Waits, connect, within
from tests.runtime.witness import Signals

SOON = 5.0
"""Seconds within which a commit has woken whoever waits, on a busy machine; nobody looks by himself."""


async def ids(connection: Connection) -> list[str]:
    return [row[0] for row in await connection.fetch("select id from holdfast.workflows order by id")]


async def letters(connection: Connection) -> list[str]:
    return [row[0] for row in await connection.fetch("select message from holdfast.message_list order by id")]


async def test_a_start_begins_when_the_caller_commits(
    processes: Processes, database: Connection, caller: Connection
) -> None:
    rt, other = await processes.runtime(shop), await processes.client()
    transaction = caller.transaction()
    await transaction.start()
    handle = await rt.start(shop(1), id="one", conn=caller)
    assert handle.id == "one"
    with pytest.raises(hf.WorkflowNotFound):
        await handle.result()
    assert await ids(database) == []
    await transaction.commit()
    await within(SOON, other.send("one", 7, LETTERS))
    assert await within(2, handle.result()) == [7]


async def test_what_is_rolled_back_is_gone(
    processes: Processes, database: Connection, caller: Connection
) -> None:
    rt = await processes.runtime(shop)
    await rt.start(shop(1), id="one")
    transaction = caller.transaction()
    await transaction.start()
    await rt.start(shop(1), id="two", conn=caller)
    await rt.send("one", 1, LETTERS, conn=caller)
    await rt.send("two", 1, LETTERS, conn=caller)
    await transaction.rollback()
    assert (await ids(database), await letters(database)) == (["one"], [])
    async with caller.transaction():
        await rt.send("one", 2, LETTERS, conn=caller)
    assert await within(2, rt.handle("one").result()) == [2]


async def test_without_a_transaction_it_is_done_at_once(processes: Processes, caller: Connection) -> None:
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(1), conn=caller)
    await handle.status()
    await rt.send(handle.id, 1, LETTERS, conn=caller)
    assert await within(2, handle.result()) == [1]


async def test_a_connection_of_a_pool_will_do(processes: Processes, dsn: str, database: Connection) -> None:
    rt = await processes.runtime(shop)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        for number in range(3):
            async with pool.acquire() as connection, connection.transaction():
                handle = await rt.start(shop(1), id=f"w{number}", conn=connection)
                await rt.send(handle.id, number, LETTERS, conn=connection)
            assert await within(2, handle.result()) == [number]
            with pytest.raises(asyncpg.InterfaceError, match="released"):
                await rt.start(shop(1), conn=connection)
    assert len(await ids(database)) == 3


# Waking


async def test_m5_n3_a_commit_wakes_everybody_who_waits_within_milliseconds(
    processes: Processes, caller: Connection, waits: Waits
) -> None:
    """In the process of the caller and in another one: a recv, an event, a reader, a start, a cancel."""
    here, there = await processes.client(), await processes.runtime(shop, patient)
    await here.start(shop(1), id="one")
    await here.start(patient(), id="two")
    await waits.on("message", "one", "letters")
    await waits.on("message", "two", "never")
    event = asyncio.create_task(here.get_event("one", LAST))
    reader = asyncio.create_task(there.read_stream("one", LOG).collect())
    cancelled = asyncio.create_task(here.handle("two").result())
    await waits.on("event", "one", "last")
    await waits.on("stream", "one", "log")
    await waits.on("end", "two")
    async with caller.transaction():
        await caller.execute("select holdfast.send('one', 'letters', '1'), holdfast.cancel('two')")
        await here.start(shop(0), id="three", conn=caller)
    async with asyncio.timeout(SOON):
        assert await event == 1
        assert await reader == [1]
        with pytest.raises(hf.WorkflowCancelled):
            await cancelled
        assert await here.handle("three").result() == []


async def test_n5_a_commit_while_nobody_listens_is_found_afterwards(
    processes: Processes, database: Connection, caller: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(1), id="one")
    await waits.on("message", "one", "letters")
    async with processes.unheard(database), caller.transaction():
        await rt.send("one", 1, LETTERS, conn=caller)
        await rt.start(shop(0), id="two", conn=caller)
    assert await within(2, handle.result()) == [1]
    assert await within(2, rt.handle("two").result()) == []


async def test_m5_sequence_numbers_and_not_clocks_make_the_order(
    processes: Processes, callers: Make, waits: Waits
) -> None:
    """What was begun first and committed last is received last; one transaction stays together."""
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(6), id="one")
    slow, fast = await callers(), await callers()
    transaction = slow.transaction()
    await transaction.start()
    await rt.send("one", "slow 1", LETTERS, conn=slow)
    await slow.execute("""select holdfast.send('one', 'letters', '"slow 2"')""")
    async with fast.transaction():
        await rt.send("one", "fast 1", LETTERS, key="k", conn=fast)
        await fast.execute("""select holdfast.send('one', 'letters', '"fast 2"')""")
    await rt.send("one", "outside", LETTERS)
    await rt.send("one", "slow 3", LETTERS, conn=slow)
    await transaction.commit()
    said = await within(5, handle.result())
    assert said == ["fast 1", "fast 2", "outside", "slow 1", "slow 2", "slow 3"]


# Nobody waits for a caller


async def test_an_open_transaction_holds_up_nobody(
    processes: Processes, database: Connection, caller: Connection, waits: Waits, signals: Signals
) -> None:
    """Whatever it has started, sent or cancelled: no batch with that id or key, no end, no take-over."""
    rt = await processes.runtime(shop, patient)
    for name in ("ends", "dies"):
        await rt.start(shop(1), id=name)
        await waits.on("message", name, "letters")
    transaction = caller.transaction()
    await transaction.start()
    await rt.start(shop(1), id="new", conn=caller)
    await rt.send("ends", "caller", LETTERS, key="k", conn=caller)
    for name in ("ends", "dies"):
        await caller.execute("select holdfast.cancel($1)", name)
    async with asyncio.timeout(5):
        new = await rt.start(shop(1), id="new")
        await rt.send("ends", "batch", LETTERS, key="k")
        assert await rt.handle("ends").result() == ["batch"]
        await rt.send("new", "batch", LETTERS)
        assert await new.result() == ["batch"]
        executor = rt.executor.lease.executor
        assert await database.fetchval("select holdfast.fence($1, $2)", executor, rt.engine.channel) == 1
        await rt.start(shop(0), id="more")
        assert await rt.handle("more").result() == []
    await transaction.commit()
    with pytest.raises(hf.WorkflowCancelled):
        await within(5, rt.handle("dies").result())
    assert await letters(database) == ['"batch"', '"batch"']


async def test_a_workflow_whose_cancelling_is_taken_back_is_taken(
    processes: Processes, caller: Connection
) -> None:
    """The caller's transaction held no row that a claim would have passed over."""
    client = await processes.client()
    handle = await client.start(shop(0), id="one")
    transaction = caller.transaction()
    await transaction.start()
    assert await caller.fetchval("select holdfast.cancel('one')")
    await processes.runtime(shop)
    assert await within(2, handle.result()) == []
    await transaction.rollback()


async def test_w1_two_open_transactions_start_one_workflow(
    processes: Processes, database: Connection, callers: Make
) -> None:
    rt = await processes.runtime(shop)
    first, second = await callers(), await callers()
    one, two = first.transaction(), second.transaction()
    await one.start()
    await two.start()
    await rt.start(shop(1), id="same", conn=first)
    await rt.start(shop(2), id="same", conn=second)
    await rt.send("same", "first", LETTERS, conn=first)
    await rt.send("same", "second", LETTERS, conn=second)
    await two.commit()
    await one.commit()
    assert await within(2, rt.handle("same").result()) == ["second", "first"]
    assert await ids(database) == ["same"]


async def test_w1_one_that_rolls_back_leaves_the_id_to_the_other(processes: Processes, callers: Make) -> None:
    rt = await processes.runtime(shop)
    first, second = await callers(), await callers()
    one, two = first.transaction(), second.transaction()
    await one.start()
    await two.start()
    await first.execute("select holdfast.start('patient', '[]', 'same')")
    await rt.start(shop(0), id="same", conn=second)
    await one.rollback()
    await two.commit()
    assert await within(2, rt.handle("same").result()) == []


@pytest.mark.parametrize(("name", "strict"), [("other", False), ("shop", True)])
async def test_w1_an_id_that_is_taken_meanwhile_fails_the_commit(
    processes: Processes, database: Connection, caller: Connection, name: str, strict: bool
) -> None:
    rt = await processes.runtime(shop)
    transaction = caller.transaction()
    await transaction.start()
    await rt.start(shop(1), id="one", on_existing="raise" if strict else "attach", conn=caller)
    await rt.start(shop(1), id="two", conn=caller)
    await database.execute("select holdfast.start($1, '[]', 'one')", name)
    with pytest.raises(asyncpg.UniqueViolationError, match="workflow 'one' exists"):
        await transaction.commit()
    assert await ids(database) == ["one"]


async def test_w1_a_hundred_callers_at_once_start_one_workflow(
    processes: Processes, database: Connection, callers: Make
) -> None:
    """Two ids each, in either order: nobody waits for another in a circle."""
    rt = await processes.runtime(shop)
    connections = [await callers() for _ in range(10)]

    async def call(number: int, connection: Connection) -> None:
        pair = ("a", "b") if number % 2 else ("b", "a")
        for turn in range(10):
            async with connection.transaction():
                for name in pair:
                    await rt.start(shop(1), id=f"{name}{turn}", conn=connection)
            await rt.start(shop(1), id=f"a{turn}")

    async with asyncio.TaskGroup() as group:
        for number, connection in enumerate(connections):
            group.create_task(call(number, connection))
    assert await ids(database) == [f"{name}{turn}" for name in "ab" for turn in range(10)]


# Errors leave the transaction usable


async def test_what_cannot_be_is_an_error_and_the_transaction_goes_on(
    processes: Processes, database: Connection, caller: Connection
) -> None:
    rt, client = await processes.runtime(shop, patient), await processes.client()
    ended = await rt.start(shop(0), id="ended")
    await ended.result()
    async with caller.transaction():
        with pytest.raises(hf.WorkflowNotFound):
            await client.send("nobody", 1, conn=caller)
        with pytest.raises(hf.WorkflowFinished):
            await client.send("ended", 1, conn=caller)
        with pytest.raises(hf.WorkflowConflict, match="is a 'shop', not a 'patient'"):
            await client.start(patient(), id="ended", conn=caller)
        with pytest.raises(hf.WorkflowConflict, match="exists already"):
            await client.start(shop(1), id="ended", on_existing="raise", conn=caller)
        with pytest.raises(hf.InvalidName):
            await client.start(shop(1), id="", conn=caller)
        with pytest.raises(hf.InvalidName):
            await client.send("ended", 1, "", conn=caller)
        with pytest.raises(hf.PayloadNotSerializable):
            await client.send("ended", object(), conn=caller)
        await client.start(shop(1), id="ended", conn=caller)  # attaches
        handle = await client.start(shop(1), id="new", conn=caller)
        with pytest.raises(hf.WorkflowConflict, match="is a 'shop', not a 'patient'"):
            await client.start(patient(), id="new", conn=caller)
        with pytest.raises(hf.WorkflowConflict, match="exists already"):
            await client.start(shop(1), id="new", on_existing="raise", conn=caller)
        await client.send("new", 1, LETTERS, conn=caller)
    assert await within(2, handle.result()) == [1]
    assert await ids(database) == ["ended", "new"]


async def test_a_runtime_starts_only_what_it_knows(processes: Processes, caller: Connection) -> None:
    rt = await processes.runtime(shop)
    with pytest.raises(hf.RegistrationError):
        await rt.start(patient(), conn=caller)
    remote = hf.WorkflowRef[[], None]("patient")
    await rt.start(remote(), id="one", conn=caller)
    await processes.runtime(patient)
    assert await rt.cancel("one")


@pytest.mark.parametrize("conn", ["postgresql://", 17, object()])
async def test_what_is_no_connection_is_refused_with_advice(processes: Processes, conn: object) -> None:
    client = await processes.client()
    with pytest.raises(TypeError, match=r"asyncpg connection.*AsyncSession"):
        await client.start(shop(1), conn=conn)
    with pytest.raises(TypeError, match=r"asyncpg connection.*AsyncSession"):
        await client.send("one", 1, conn=conn)


async def test_a_connection_to_another_database_is_refused(
    processes: Processes, holdfast_database: MakeDatabase
) -> None:
    """Whether or not it has the schema; and it stays usable."""
    client = await processes.client()
    for migrated in (True, False):
        connection = await connect(holdfast_database(migrated=migrated))
        async with connection.transaction():
            for _ in range(2):
                with pytest.raises(hf.ConfigurationError, match="another database"):
                    await client.start(shop(1), conn=connection)
            assert await connection.fetchval("select 1") == 1
        await connection.close()


# What is stored


class Mirror:
    """Turns bytes round, and knows whose they are."""

    def encode(self, data: bytes, context: PayloadContext) -> bytes:
        return f"{context.workflow_id}/{context.kind}/{context.name}:".encode() + data[::-1]

    def decode(self, data: bytes, context: PayloadContext) -> bytes:
        whose, _, sealed = data.partition(b":")
        assert whose.decode() == f"{context.workflow_id}/{context.kind}/{context.name}"
        return sealed[::-1]


async def test_k3_the_codec_is_applied(
    processes: Processes, database: Connection, caller: Connection
) -> None:
    rt = await processes.runtime(shop, settings=hf.Settings(codec=Mirror()))
    async with caller.transaction():
        handle = await rt.start(shop(1, note="n"), id="one", conn=caller)
        await rt.send("one", "text", LETTERS, conn=caller)
    assert await within(2, handle.result()) == ["n", "text"]
    assert await letters(database) == ["\\x00" + b'one/message/letters:"txet"'.hex()]


async def test_w9_timeouts_are_the_call_s_or_the_definition_s(
    processes: Processes, database: Connection, caller: Connection
) -> None:
    @hf.workflow(timeout=50)
    async def brief() -> None: ...

    client = await processes.client()
    await client.start(brief(), id="a", conn=caller)
    await client.start(brief(), id="b", timeout=3, conn=caller)
    await client.start(shop(), id="c", conn=caller)
    stored = await database.fetch("select id, timeout, app_version from holdfast.workflows order by id")
    assert [tuple(row) for row in stored] == [("a", 50, None), ("b", 3, None), ("c", None, None)]
    async with hf.Runtime(processes.dsn, workflows=[shop], app_version="7") as rt:
        await rt.start(shop(), id="d", conn=caller)
    assert await database.fetchval("select app_version from holdfast.workflows where id = 'd'") == "7"


async def test_a_connection_with_codecs_of_its_own_will_do(processes: Processes, caller: Connection) -> None:
    for kind in ("json", "jsonb", "uuid"):
        await caller.set_type_codec(kind, schema="pg_catalog", encoder=repr, decoder=repr, format="text")
    rt = await processes.runtime(shop)
    handle = await rt.start(shop(1), id="one", conn=caller)
    await rt.send("one", 1, LETTERS, conn=caller)
    assert await within(2, handle.result()) == [1]


# In a transaction of a workflow

told: list[Any] = []


@hf.transaction
async def book(connection: Connection, fail: bool) -> None:
    (rt,) = told
    await connection.execute("insert into public.booked values (1)")
    await rt.send("one", "booked", LETTERS, conn=connection)
    await rt.start(shop(0), id="two", conn=connection)
    if fail:
        raise LookupError


@hf.workflow
async def booking(fail: bool) -> str:
    try:
        await book(fail)
    except LookupError:
        return "failed"
    return "booked"


async def test_w2_a_transaction_of_a_workflow_starts_and_sends_with_it(
    processes: Processes, database: Connection
) -> None:
    await database.execute("create table public.booked (number integer)")
    rt = await processes.runtime(shop, booking)
    told[:] = [rt]
    handle = await rt.start(shop(1), id="one")
    assert await rt.run(booking(True)) == "failed"
    assert (await letters(database), "two" in await ids(database)) == ([], False)
    assert await rt.run(booking(False)) == "booked"
    assert await within(2, handle.result()) == ["booked"]
    assert await within(2, rt.handle("two").result()) == []
    assert await database.fetchval("select count(*) from public.booked") == 1


# Crashes


@pytest.mark.parametrize("killed", ["before", "after"])
async def test_m1_w1_all_or_nothing_of_a_caller_that_is_killed(
    processes: Processes, database: Connection, dsn: str, killed: str
) -> None:
    await database.execute("create table public.orders (id integer)")
    rt = await processes.runtime(shop)
    old = await rt.start(shop(1), id="old")
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.callers.shop", dsn, killed, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert await within(20, child.stdout.readline()) == b"here\n"
    child.kill()
    await child.wait()
    if killed == "after":
        assert await within(2, old.result()) == ["hello"]
        await rt.send("new", 1, LETTERS)
        assert await within(2, rt.handle("new").result()) == [1]
    else:
        assert (await ids(database), await letters(database)) == (["old"], [])
    assert await database.fetchval("select count(*) from public.orders") == (killed == "after")
