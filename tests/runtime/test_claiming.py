"""Claims that go wrong. What one has taken whose reply is lost is run all the same, and nothing twice [W13];
what somebody had locked, and has left as it was, is taken once it is free.
"""

from __future__ import annotations

from collections import Counter

import pytest

import holdfast as hf
from holdfast._run import claiming
from holdfast._sql import statements
from holdfast._store.connection import Connection
from holdfast._store.workflows import Claim, claim_workflows
from holdfast.testing.faults import Proxy
from tests.processes import Processes, Waits, connect, within
from tests.runtime.witness import PATIENCE, quick

ran: Counter[str] = Counter()


@hf.workflow
async def counts() -> None:
    ran[hf.current().workflow_id] += 1


@pytest.mark.parametrize("losses", [1, 2, 3])
async def test_w13_what_a_claim_has_taken_whose_reply_is_lost_is_run_all_the_same(
    processes: Processes, dsn: str, monkeypatch: pytest.MonkeyPatch, losses: int
) -> None:
    """There is more to take than one claim takes: what nobody knows to be taken must not be forgotten."""
    monkeypatch.setattr(claiming, "MOST_CLAIMED", 4)
    ran.clear()
    client = await processes.client()
    handles = [await client.start(counts(), id=str(number)) for number in range(20)]
    async with Proxy(dsn) as proxy:
        for _ in range(losses):
            proxy.lose_reply("claim_workflows")
        async with hf.Runtime(proxy.dsn, workflows=[counts], settings=quick()):
            for handle in handles:
                await within(PATIENCE, handle.result())
    assert ran == Counter({str(number): 1 for number in range(20)})


FREE = {
    "work": "status = 0",
    "left by the dead": "status = 2",
    "parked": "status = 2, parked = '{0}'",
    "suspect": "status = 2, claims = 2, claim_mark = 1 << 60",
}
"""What is free to be taken, and what its row is like."""


@pytest.mark.parametrize("kind", FREE)
async def test_w12_what_somebody_has_locked_and_left_free_is_taken_without_a_bell(
    processes: Processes, database: Connection, waits: Waits, kind: str
) -> None:
    """As a resume does whose workflow is active, a cancel that comes too late, and whoever rolls back."""
    ran.clear()
    client = await processes.client()
    handle = await client.start(counts(), id="one")
    await database.execute(f"update holdfast.workflows set {FREE[kind]}")
    async with database.transaction():
        await database.execute("select from holdfast.workflows for update")
        await processes.runtime(counts, settings=quick())
        bell = kind if kind in ("parked", "suspect") else "work"
        await waits.on(bell, "counts", times=3)
        assert not ran
    await within(PATIENCE, handle.result())
    assert ran == Counter(one=1)


async def test_w12_what_is_free_does_not_wait_for_what_somebody_has_locked(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    ran.clear()
    client = await processes.client()
    await client.start(counts(), id="one")
    async with database.transaction():
        await database.execute("select from holdfast.workflows for update")
        await processes.runtime(counts, settings=quick())
        await waits.on("work", "counts", times=2)
        other = await client.start(counts(), id="two")
        await within(PATIENCE, other.result())
        assert ran == Counter(two=1)


async def test_w12_who_forks_a_workflow_is_in_nobodys_way(processes: Processes, database: Connection) -> None:
    ran.clear()
    client = await processes.client()
    handle = await client.start(counts(), id="one")
    async with database.transaction():
        await database.execute("select from holdfast.workflows for key share")
        await processes.runtime(counts, settings=quick())
        await within(PATIENCE, handle.result())


async def test_w13_what_was_taken_unknown_to_the_taker_is_asked_for_again_while_it_is_locked(
    database: Connection, dsn: str
) -> None:
    """The reply of a claim was lost, and before the next one somebody has locked what it took."""
    sql = statements.load("holdfast")
    executor = await database.fetchval("select holdfast.register_executor('it', null)")
    await database.execute(
        "insert into holdfast.workflows (id, name, status, executor_id, epoch, claims, start_token, input, "
        "created_at) values ('one', 'counts', 2, $1, 1, 1, gen_random_uuid(), '[]', now())",
        executor,
    )

    async def claim(number: int, *running: str) -> Claim:
        return await claim_workflows(
            database, sql, executor, number, ["counts"], [None], [5], 10, running, kind="work", channel="none"
        )

    holder = await connect(dsn)
    async with holder.transaction():
        await holder.execute("select from holdfast.workflows for update")
        assert await claim(1) == Claim([], held=True)
        assert await claim(2, "one") == Claim([], held=False)
    await holder.close()
    claimed = await claim(3)
    assert ([found.id for found in claimed.found], claimed.held) == (["one"], False)
