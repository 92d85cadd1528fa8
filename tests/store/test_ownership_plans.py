"""Claims, heartbeats and what befalls what was claimed touch what they take, however large the tables."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import uuid4

import asyncpg

from holdfast._store.commits import Continue, Journaled, Owner, Start
from tests.store.test_plans import SQL, TABLES, begin, commit, connection, grow, reads

__all__ = ["connection"]


async def claim(
    connection: asyncpg.Connection[asyncpg.Record],
    executor: int,
    number: int,
    kind: str = "work",
    names: Sequence[str] = ("w",),
) -> list[asyncpg.Record]:
    none, five = [None] * len(names), [5] * len(names)
    return await connection.fetch(
        SQL["workflows.claim"], executor, number, names, none, five, 100, None, kind, "channel"
    )


async def test_claiming_free_workflows_reads_only_those(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    executor, _ = await begin(connection, 1)
    for number in range(1, 9):
        assert not await claim(connection, executor, number)
        assert not await claim(connection, executor, number + 10, "parked")
        await connection.execute("update holdfast.executors set last_claim = $1", number)
    await grow(connection)
    new = [Start(id=f"n{n}", name="w", token=uuid4(), here=False, input=b"[]") for n in range(30)]
    await commit(connection, executor, *new)
    before = await reads(connection)
    assert len(await claim(connection, executor, 9)) == len(new)
    assert (await reads(connection))["workflows"] - before["workflows"] <= 6 * len(new)
    assert (await reads(connection))["steps"] == before["steps"]


async def test_claiming_of_a_backlog_reads_only_what_is_taken_and_the_longest_waiting_first(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    executor, _ = await begin(connection, 1)
    names = ["w", "none", "late", "early"]
    for number in range(1, 9):
        assert not await claim(connection, executor, number, names=names)
    await connection.execute(
        """
        insert into holdfast.workflows (id, name, status, start_token, input, created_at)
        select name || n, name, 0, gen_random_uuid(), '[]', now() - make_interval(secs => n + since)
        from (values ('early', 100), ('late', 0.5), ('w', 50)) names (name, since)
        cross join generate_series(1, 10000) n
        """
    )
    taken: list[str] = []
    for number in range(10, 14):
        before = await reads(connection)
        rows = await claim(connection, executor, number, names=names)
        assert (await reads(connection))["workflows"] - before["workflows"] <= 8 * 100
        assert len({row["name"] for row in rows}) == 1
        taken += sorted((row["id"] for row in rows), key=lambda one: -int(one.removeprefix(rows[0]["name"])))
    # Then those of w have waited longer.
    assert taken[:150] == [f"early{n}" for n in range(10000, 9900, -1)] + [
        f"w{n}" for n in range(10000, 9950, -1)
    ]
    assert await connection.fetchval("select count(*) from holdfast.workflows where status = 2") == 401


async def test_two_who_claim_at_once_share_the_backlog(
    connection: asyncpg.Connection[asyncpg.Record], dsn: str
) -> None:
    executor, _ = await begin(connection, 1)
    names = ["v", "w"]
    await connection.execute(
        "insert into holdfast.workflows (id, name, status, start_token, input, created_at) "
        "select name || n, name, 0, gen_random_uuid(), '[]', now() from unnest($1::text[]) name, "
        "generate_series(1, 75) n",
        names,
    )
    other = await asyncpg.connect(dsn)
    second = await other.fetchval("select holdfast.register_executor('other', null)")
    async with connection.transaction():
        taken = await claim(connection, executor, 1, names=names)
        assert len(taken) == 100
        # Nothing is locked that has not been taken.
        rest = await claim(other, second, 1, names=names)
        assert len(rest) == 50
    assert len({row["id"] for row in [*taken, *rest]}) == 150
    await other.close()


async def test_a_heartbeat_reads_only_those_who_live(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    executor, _ = await begin(connection, 1)
    await connection.execute("select holdfast.register_executor('other', null)")
    beat = SQL["executors.beat"]
    for _ in range(8):
        await connection.fetch(beat, executor, True, "channel", "bell")
    await connection.execute(
        "insert into holdfast.executors (name, started_at, heartbeat_at, fenced_at) "
        "select 'dead', now(), now(), now() from generate_series(1, 20000)"
    )
    before = await reads(connection)
    rows = await connection.fetch(beat, executor, True, "channel", "bell")
    assert [tuple(row) for row in rows] == [(True, True, False)]
    assert (await reads(connection))["executors"] - before["executors"] <= 10


async def test_asking_who_is_to_end_reads_only_those_that_run_here(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    executor, owners = await begin(connection, 5)
    query = SQL["workflows.list_cancelling"]
    await connection.execute("analyze holdfast.workflows")
    for _ in range(8):
        assert await connection.fetch(query, executor) == []
    await grow(connection)
    await connection.execute("update holdfast.workflows set executor_id = 1000 where id like 'old%'")
    await connection.execute("update holdfast.workflows set cancelling = true where id = 'w3'")
    before = await reads(connection)
    assert [row["id"] for row in await connection.fetch(query, executor)] == ["w3"]
    assert (await reads(connection))["workflows"] - before["workflows"] <= 2 * len(owners)


async def test_what_befalls_claimed_workflows_reads_by_key_only(
    connection: asyncpg.Connection[asyncpg.Record],
) -> None:
    """Settled, given back, claimed again with their journals, parked, passed on, continued."""
    executor, owners = await begin(connection, 30)
    ids = [owner.workflow_id for owner in owners]
    park = SQL["workflows.park"]
    # For the test's own statements, whose plans are kept as well.
    await connection.execute("set enable_seqscan = off")

    async def befall(executor: int, number: int) -> int:
        """All of it, once; under which number the executor claims next."""
        epoch = await connection.fetchval("select epoch from holdfast.workflows where id = 'w0'")
        await connection.execute(SQL["workflows.settle"], executor, ids, [epoch] * len(ids))
        records = [Journaled(owner=Owner(one, epoch), step_id="1", output=b"1") for one in ids]
        await commit(connection, executor, *records)
        continued = [Continue(owner=Owner(one, epoch), name="w", input=b"[]") for one in ids]
        assert not await commit(connection, executor, *continued)
        assert len(await claim(connection, executor, number)) == len(ids)
        for one in ids:
            assert await connection.fetchval(park, executor, one, epoch + 1, None, "channel") == 2
        assert not await claim(connection, executor, number + 1, "parked")
        await connection.execute("update holdfast.workflows set parked = '{0}' where id = any ($1)", ids)
        assert len(await claim(connection, executor, number + 2, "parked")) == len(ids)
        await connection.execute("update holdfast.workflows set parked = null where id = any ($1)", ids)
        return number + 3

    number = 1
    for _ in range(8):
        number = await befall(executor, number)
    await grow(connection)
    before = await reads(connection)
    await befall(executor, number)
    after = await reads(connection)
    for table in TABLES:
        assert after[table] - before[table] <= 40 * len(ids), table
