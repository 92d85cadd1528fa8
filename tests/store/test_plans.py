"""The hot statements touch what they need and no more, however large the tables and however old the plans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

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
    connection: asyncpg.Connection[asyncpg.Record], executor: int, *records: Record, again: bool = False
) -> dict[int, Answer]:
    batch, place = Batch(), 1
    for record in records:
        place = record.add(batch, place)
    rows = await connection.fetch(
        SQL["commits.batch"], executor, None, "channel", 1, again, [], *batch.columns()
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
        Claims(owner=owner, claims=[Claim(step_id=f"{number}.10", kind="timeout", timeout=9.0)]),
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
        assert after[table] - before[table] <= 20 * len(owners), table
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

    async def look() -> int:
        found = await connection.fetch(SQL["workflows.look_results"], ids)
        found += await connection.fetch(SQL["events.look"], ids, ["k"] * len(ids), [0] * len(ids))
        found += await connection.fetch(SQL["streams.look"], ids, ["s"] * len(ids), [-1] * len(ids), 500)
        return len(found)

    for _ in range(8):
        assert await look() == 3 * len(ids)
    await grow(connection)
    before = await reads(connection)
    assert await look() == 3 * len(ids)
    after = await reads(connection)
    for table in TABLES:
        assert after[table] - before[table] <= 6 * len(ids), table


async def test_claiming_free_workflows_reads_only_those(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    executor, _ = await begin(connection, 1)
    claim = SQL["workflows.claim"]
    for number in range(1, 9):
        assert not await connection.fetch(claim, executor, number, ["w"], [None], 100, None)
    await grow(connection)
    new = [Start(id=f"n{n}", name="w", token=uuid4(), here=False, input=b"[]") for n in range(30)]
    await commit(connection, executor, *new)
    before = await reads(connection)
    assert len(await connection.fetch(claim, executor, 9, ["w"], [None], 100, None)) == len(new)
    assert (await reads(connection))["workflows"] - before["workflows"] <= 6 * len(new)
