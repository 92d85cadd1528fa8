"""Lists and removals touch what they show and remove, however much there is that they do not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from holdfast._store.connection import Connection
from holdfast._store.messages import list_messages
from holdfast._store.streams import list_streams
from holdfast._store.workflows import Filter, delete_workflow, list_workflows, prune_workflows
from tests.store.test_plans import SQL, TABLES, connection, reads

__all__ = ["connection"]

LONG_AGO = datetime.min.replace(tzinfo=UTC)
HISTORY = """
insert into holdfast.workflows (id, name, status, start_token, input, created_at, started_at, finished_at,
        parent_id, attributes)
    select 'old' || n, 'w', case when n % 1000 = 0 then 4 else 3 end, gen_random_uuid(), '[]',
        now() - make_interval(secs => n), now(), now() - make_interval(secs => n - 0.5),
        case when n % 20000 = 1 then 'some parent' end,
        case when n % 10 = 0 then jsonb_build_object('customer', n / 10) end
    from generate_series(1, 60000) n;
insert into holdfast.workflows (id, name, status, executor_id, start_token, input, created_at)
    select 'alive' || n, 'alive', n % 2 * 2, case when n % 2 = 1 then 1 end, gen_random_uuid(), '[]',
        now() - make_interval(days => n)
    from generate_series(1, 20) n;
insert into holdfast.steps (workflow_id, step_id, seq, kind, name, outcome, started_at, finished_at)
    select 'old' || n, '1', n, 'step', 's', 0, now(), now() from generate_series(1, 60000) n;
insert into holdfast.messages (workflow_id, topic, payload, created_at, consumed_by)
    select 'old' || n, 't', '1', now(), case when n % 2 = 0 then '1' end from generate_series(1, 60000) n;
insert into holdfast.events (workflow_id, key, revision, payload, step_id, created_at)
    select 'old' || n, 'k', 1, '1', '1', now() from generate_series(1, 60000) n;
insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, created_at)
    select 'old' || n, 's', 0, '1', 1, '1', now() from generate_series(1, 60000) n;
"""


async def cost(connection: Connection, before: dict[str, int], *tables: str) -> int:
    """Rows read of these tables since then."""
    after = await reads(connection)
    return sum(after[table] - before[table] for table in tables or TABLES)


async def test_lists_read_what_they_show(connection: Connection) -> None:
    questions: list[tuple[Filter, int]] = [
        (Filter(), 25),
        (Filter(name="w"), 25),
        (Filter(statuses=[3]), 25),
        (Filter(before=(datetime(2100, 1, 1, tzinfo=UTC), "x")), 25),
        (Filter(parent="some parent"), 3),
        (Filter(id_prefix="old5999"), 11),
        (Filter(attributes='{"customer": 4711}'), 1),
        (Filter(statuses=[0, 2]), 20),
        (Filter(statuses=[2]), 10),
        (Filter(statuses=[4]), 25),
        (Filter(created_from=datetime(2100, 1, 1, tzinfo=UTC)), 0),
    ]
    for shown, _ in questions * 8:
        assert not await list_workflows(connection, SQL, shown, 25)
    # Each call has a plan of its own, from what is known of the table.
    await connection.execute(f"{HISTORY} analyze")
    for shown, count in questions:
        before = await reads(connection)
        assert len(await list_workflows(connection, SQL, shown, 25)) == count
        assert await cost(connection, before, "workflows") <= 4 * 25 + 100, shown


async def test_removals_read_what_they_remove(connection: Connection) -> None:
    for _ in range(8):
        assert await delete_workflow(connection, SQL, "nobody", 10, "channel") == "unknown"
        assert (await prune_workflows(connection, SQL, 10, LONG_AGO, 10, "channel")).removed == 0
    await connection.execute(HISTORY)
    before = await reads(connection)
    assert await delete_workflow(connection, SQL, "old7", 1000, "channel") == "deleted"
    assert await cost(connection, before) <= 40
    before = await reads(connection)
    pruned = await prune_workflows(connection, SQL, 30_000, LONG_AGO, 500, "channel")
    assert pruned.removed == 100
    assert await cost(connection, before) <= 3000
    assert pruned.reached is not None
    # Children of an active parent, and who is held, are passed over once and not again.
    await connection.execute("update holdfast.workflows set parent_id = 'alive1' where id like 'old5%'")
    total, reached, batches = 0, pruned.reached, 0
    before = await reads(connection)
    while True:
        found = await prune_workflows(connection, SQL, 40_000, reached, 5000, "channel")
        total, batches = total + found.removed, batches + 1
        if found.reached is None:
            break
        reached = found.reached
    left: Any = await connection.fetchval(
        "select count(*) from holdfast.workflows "
        "where id like 'old%' and finished_at < now() - interval '40000 s'"
    )
    assert left == await connection.fetchval(
        "select count(*) from holdfast.workflows "
        "where parent_id = 'alive1' and finished_at < now() - interval '40000 s'"
    )
    assert batches > 5
    assert await cost(connection, before, "workflows") <= 12 * total + 6 * left + 5000


async def test_looking_at_one_workflow_reads_that_one(connection: Connection) -> None:
    for _ in range(8):
        await list_messages(connection, SQL, "old8", -1, 100)
        await list_streams(connection, SQL, "old8")
    await connection.execute(HISTORY)
    before = await reads(connection)
    assert len(await list_messages(connection, SQL, "old8", -1, 100)) == 1
    assert len(await list_streams(connection, SQL, "old8")) == 1
    assert await cost(connection, before) <= 20
