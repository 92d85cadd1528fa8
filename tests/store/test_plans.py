"""The hot statements touch what they need and no more, however large the tables and however old the plans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from holdfast._keys import reply_key
from holdfast._sql import statements
from holdfast._store.commits import (
    Answer,
    Batch,
    Claim,
    Claims,
    Close,
    Code,
    End,
    Journaled,
    OutsideSend,
    Owner,
    Record,
    Send,
    SetEvent,
    Start,
    Write,
    answers_of,
)
from holdfast._store.picks import Alternative, Offer, Pick, Picks

SQL = statements.load("holdfast")
GROWN = 60_000
TABLES = ("workflows", "steps", "messages", "events", "stream_values", "streams")


async def commit(
    connection: asyncpg.Connection[asyncpg.Record],
    executor: int,
    *records: Record,
    again: bool = False,
    lane: int = 1,
) -> dict[int, Answer]:
    batch, place = Batch(), 1
    for record in records:
        place = record.add(batch, place)
    rows = await connection.fetch(
        SQL["commits.batch"], executor, None, "channel", lane, again, [], *batch.columns()
    )
    return answers_of(rows)


async def grow(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Fills every table behind the planner's back: no ANALYZE."""
    await connection.execute(
        """
        insert into holdfast.workflows (id, name, status, executor_id, epoch, start_token, input, created_at)
            select 'old' || n, 'w', 2, 1, 1, gen_random_uuid(), '[]', now() from generate_series(1, 60000) n;
        insert into holdfast.steps (workflow_id, step_id, seq, kind, name, outcome, started_at, finished_at)
            select 'old' || n, '1', n, 'step', 's', 0, now(), now() from generate_series(1, 60000) n;
        insert into holdfast.messages (workflow_id, topic, payload, created_at)
            select 'old' || n, 't', '1', now() from generate_series(1, 60000) n;
        insert into holdfast.events (workflow_id, key, revision, payload, step_id, created_at)
            select 'old' || n, 'k', 1, '1', '1', now() from generate_series(1, 60000) n;
        insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, created_at)
            select 'old' || n, 's', 0, '1', 1, '1', now() from generate_series(1, 60000) n;
        insert into holdfast.streams (workflow_id, key, closed_at, step_id)
            select 'old' || n, 'other', now(), '1' from generate_series(1, 60000) n;
        """
    )


async def reads(connection: asyncpg.Connection[asyncpg.Record]) -> dict[str, int]:
    """Rows read of each table by this session so far, by scans and through indexes alike."""
    # The statistics of a session are sent when it is idle, at most once a second, unless forced.
    await connection.execute("select pg_stat_force_next_flush()")
    await connection.execute("select pg_stat_clear_snapshot()")
    rows = await connection.fetch(
        """
        select relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) as read
        from pg_stat_user_tables where schemaname = 'holdfast'
        """
    )
    return {row["relname"]: row["read"] for row in rows}


def everything(owner: Owner, number: int) -> list[Record]:
    """One record of every kind."""
    workflow = owner.workflow_id
    return [
        Journaled(owner=owner, step_id=f"{number}.1", name="s", output=b"1"),
        Send(owner=owner, step_id=f"{number}.2", kind="send", name="t", to=workflow, topic="t", payload=b"1"),
        SetEvent(owner=owner, step_id=f"{number}.3", kind="set_event", name="k", key="k", payload=b"1"),
        Write(
            owner=owner,
            step_id=f"{number}.4",
            kind="write_stream",
            name="s",
            key="s",
            payloads=[b"1", b"2"],
        ),
        Close(owner=owner, step_id=f"{number}.5", kind="close_stream", name=f"c{number}", key=f"c{number}"),
        OutsideSend(to=workflow, topic="u", payload=b"1", token=uuid4(), key=f"{workflow}{number}"),
        Claims(owner=owner, claims=[Claim(step_id=f"{number}.6", kind="recv", name="t", timeout=10.0)]),
        Claims(owner=owner, claims=[Claim(step_id=f"{number}.7", kind="get_event", name="k", target="old7")]),
        Claims(owner=owner, claims=[Claim(step_id=f"{number}.8", kind="result", target="old8")]),
        Claims(owner=owner, claims=[Claim(step_id=f"{number}.9", kind="sleep", timeout=0.0)]),
        Claims(owner=owner, claims=[Claim(step_id=f"{number}.30", kind="timeout", timeout=9.0)]),
        *reading(owner, number),
        *asking(owner, number),
    ]


def reading(owner: Owner, number: int) -> list[Record]:
    """What workflow code reads of streams and events."""
    return [
        Claims(
            owner=owner,
            claims=[Claim(step_id=f"{number}.{step}", kind=kind, name=name, target="old9", after=after)],
        )
        for step, kind, name, after in (
            (20, "read_stream", "s", -1),
            (21, "read_stream", "s", -3),
            (22, "watch_event", "k", 0),
        )
    ]


def asking(owner: Owner, number: int) -> list[Record]:
    """A request, a claim of its reply, and a reply."""
    workflow, request = owner.workflow_id, f"{owner.workflow_id}{number}"
    return [
        Send(
            owner=owner,
            step_id=f"{number}.10",
            kind="ask",
            name="v",
            target=request,
            open=True,
            to=workflow,
            topic="v",
            payload=b"1",
            request=request,
        ),
        Claims(owner=owner, claims=[Claim(step_id=f"{number}.12", kind="ask", name="k", target="old7")]),
        SetEvent(
            owner=owner,
            step_id=f"{number}.11",
            kind="reply",
            name="v",
            target=request,
            key=reply_key(request),
            payload=b"1",
        ),
    ]


def picks(owner: Owner, number: int) -> list[Record]:
    """Firsts over everything there is: one that finds nothing and waits, one for each that is ready."""
    workflow = owner.workflow_id
    waiting = [
        Alternative(kind="recv", names=("none", "nor this")),
        Alternative(kind="get_event", names=("none",), target=workflow),
        Alternative(kind="result", target=workflow),
        Alternative(kind="watch_event", names=("none",), target=workflow, after=0),
        Alternative(kind="read_stream", names=("none",), target=workflow, after=-1),
        Alternative(kind="sleep", timeout=100.0),
    ]
    ready = [
        Alternative(kind="recv", names=("none", "u")),
        Alternative(kind="get_event", names=("k",), target="old7"),
        Alternative(kind="watch_event", names=("k",), target="old7", after=0),
        Alternative(kind="read_stream", names=("s",), target="old8", after=-1),
    ]
    made = [Pick(step_id=f"{number}.11", kind="first", name="", timeout=50.0, wanted=waiting)]
    for place, one in enumerate(ready, 12):
        made.append(
            Pick(step_id=f"{number}.{place}", kind="first", name="", timeout=None, wanted=[*waiting, one])
        )
    offer = Offer(6, Code.VALUE, b"1", 1)
    stepped = [*waiting, Alternative(kind="step")]
    made.append(
        Pick(step_id=f"{number}.16", kind="first", name="", timeout=None, wanted=stepped, offer=offer)
    )
    return [Picks(owner=owner, picks=made)]


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def begin(connection: asyncpg.Connection[asyncpg.Record], count: int) -> tuple[int, list[Owner]]:
    executor = await connection.fetchval("select holdfast.register_executor('test', null)")
    owners = [Owner(f"w{n}", 1) for n in range(count)]
    starts = [Start(id=o.workflow_id, name="w", token=uuid4(), here=True, input=b"[]") for o in owners]
    assert not await commit(connection, executor, *starts)
    return executor, owners


async def test_a_batch_reads_by_key_only_even_with_plans_made_for_empty_tables(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    executor, owners = await begin(connection, 50)
    for number in range(8):  # plans are made, and would be kept, while the tables are small
        await commit(connection, executor, *everything(owners[0], number))
    await grow(connection)
    before = await reads(connection)
    records = [record for owner in owners[1:] for record in everything(owner, 0)]
    answers = await commit(connection, executor, *records)
    after = await reads(connection)
    assert all(answer.code in (Code.VALUE, Code.WAIT) for answer in answers.values())
    for table in TABLES:
        assert after[table] - before[table] <= 12 * len(owners), table
    before = after
    await commit(connection, executor, *records, again=True)
    after = await reads(connection)
    for table in TABLES:
        assert after[table] - before[table] <= 24 * len(owners), table
    ends = [End(owner=owner, status=3, output=b"1") for owner in owners]
    before = await reads(connection)
    assert not await commit(connection, executor, *ends)
    assert (await reads(connection))["workflows"] - before["workflows"] <= 6 * len(owners)


async def test_picks_read_by_key_only_even_with_plans_made_for_empty_tables(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    executor, owners = await begin(connection, 20)
    for number in range(8):
        await commit(connection, executor, *picks(owners[0], number))
    await grow(connection)
    u = [OutsideSend(to=owner.workflow_id, topic="u", payload=b"1", token=uuid4()) for owner in owners]
    await commit(connection, executor, *u)
    before = await reads(connection)
    records = [record for owner in owners[1:] for record in picks(owner, 0)]
    answers = await commit(connection, executor, *records)
    after = await reads(connection)
    assert sorted({answer.code for answer in answers.values()}) == [Code.VALUE, Code.WAIT]
    assert len([answer for answer in answers.values() if answer.code is Code.WAIT]) == len(owners) - 1
    for table in TABLES:
        assert after[table] - before[table] <= 40 * len(owners), table


async def test_looks_read_by_key_only_even_with_plans_made_for_empty_tables(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    executor, owners = await begin(connection, 20)
    await commit(connection, executor, *[r for owner in owners for r in everything(owner, 0)])
    ids = [owner.workflow_id for owner in owners]

    lasts = [None, 5] * (len(ids) // 2)

    async def look() -> int:
        found = await connection.fetch(SQL["workflows.look_results"], ids)
        found += await connection.fetch(SQL["events.look"], ids, ["k"] * len(ids), [0] * len(ids))
        found += await connection.fetch(
            SQL["streams.look"], ids, ["s"] * len(ids), [-1] * len(ids), lasts, 500, 1_000_000
        )
        return len(found)

    for _ in range(8):
        assert await look() == 3 * len(ids)
    await grow(connection)
    before = await reads(connection)
    assert await look() == 3 * len(ids)
    after = await reads(connection)
    for table in TABLES:
        assert after[table] - before[table] <= 6 * len(ids), table


async def test_redeeming_a_token_reads_by_key_only(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    _, owners = await begin(connection, 1)

    async def redeem(number: int) -> bool:
        return bool(
            await connection.fetchval(
                SQL["tokens.redeem"], owners[0].workflow_id, "t", b"1", f"k{number}", uuid4(), 4e9, "channel"
            )
        )

    for number in range(8):
        assert await redeem(number)
    await grow(connection)
    before = await reads(connection)
    assert await redeem(9)
    assert not await redeem(9)
    after = await reads(connection)
    for table in TABLES:
        assert after[table] - before[table] <= 8, table


async def test_the_functions_for_sql_read_by_key_only_even_with_plans_made_for_empty_tables(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    await connection.execute("select holdfast.start('w', '[]', 'w0')")

    async def use(number: int) -> None:
        async with connection.transaction():
            await connection.execute(
                "select holdfast.start('w', '[]', $1), holdfast.start('w', '[]', 'w0')", f"n{number}"
            )
            await connection.execute("select holdfast.send($1, 't', '1', 'k')", f"n{number}")
            await connection.execute("select holdfast.send('w0', 't', '1', $1)", f"k{number}")
            await connection.execute("select holdfast.cancel($1)", f"n{number}")
        await connection.execute("select holdfast.get_event('old1', 'k')")
        await connection.execute("select * from holdfast.read_stream('old1', 's')")

    for number in range(8):
        if number == 1:
            await connection.execute("select holdfast.start('w', '[]', 'old1')")
        if number:
            await use(number)
    await connection.execute("delete from holdfast.workflows where id = 'old1'")
    await grow(connection)
    await connection.execute(
        """
        insert into holdfast.events (workflow_id, key, revision, payload, step_id, created_at)
            select 'old1', 'k', n, '1', '1', now() from generate_series(2, 60000) n;
        insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, created_at)
            select 'old1', 's', n, '1', 1, '1', now() from generate_series(1, 60000) n;
        """
    )
    before = await reads(connection)
    for number in range(100, 110):
        await use(number)
    after = await reads(connection)
    for table in ("workflows", "messages", "events", "streams", "intents"):
        assert after[table] - before[table] <= 300, table
    assert after["stream_values"] - before["stream_values"] <= 10 * 1000


async def test_a_large_transaction_is_settled_in_one_go(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    before = await reads(connection)
    async with connection.transaction():
        await connection.execute("select holdfast.start('w', '[]', 'w' || n) from generate_series(1, 3000) n")
        await connection.execute("select holdfast.send('w1', 't', '1') from generate_series(1, 3000) n")
    after = await reads(connection)
    assert await connection.fetchval("select count(*) from holdfast.messages") == 3000
    assert after["intents"] - before["intents"] <= 12 * 6000
    assert after["workflows"] - before["workflows"] <= 12 * 6000


async def test_trimming_reads_only_what_it_deletes(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    executor, owners = await begin(connection, 10)
    trim = SQL["streams.trim"]
    for _ in range(8):
        assert [tuple(row) for row in await connection.fetch(trim, "w9", "s", 5, 100)] == [(0, True)]
    await grow(connection)
    values = [b"1"] * 50
    await commit(
        connection,
        executor,
        *(
            Write(owner=o, step_id="1", kind="write_stream", name="s", key="s", payloads=values)
            for o in owners
        ),
    )
    before = await reads(connection)
    assert [tuple(row) for row in await connection.fetch(trim, "w9", "s", 20, 100)] == [(20, True)]
    assert [tuple(row) for row in await connection.fetch(trim, "w9", "s", 1000, 10)] == [(50, False)]
    after = await reads(connection)
    assert after["stream_values"] - before["stream_values"] <= 40
    assert after["streams"] - before["streams"] <= 6
