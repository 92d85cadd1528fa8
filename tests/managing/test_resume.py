"""Resuming: what was ended by others than itself goes on from its journal [W12]."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock
from tests.processes import Points, Processes, Waits, connect, within
from tests.runtime.witness import PATIENCE, journal, quick, state

ran: Counter[str] = Counter()
broken: list[bool] = []
log = hf.Stream[str]("log")
news = hf.Event[str]("news")


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    ran.clear()
    broken.clear()


@hf.step
async def do(label: str) -> str:
    ran[label] += 1
    return label


@hf.workflow
async def careful() -> list[str]:
    """Does something, waits, and tidies up whatever comes."""
    said = [await do("before")]
    try:
        said.append(await hf.recv("go on"))
        said.append(await do("after"))
    finally:
        await do("tidy")
    return said


async def cancelled(rt: hf.Client, handle: hf.Handle[object]) -> None:
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)


@pytest.mark.parametrize("by", ["itself", "another process", "nobody yet"])
async def test_w12_a_cancelled_workflow_goes_on_where_it_was_interrupted(
    processes: Processes, database: Connection, waits: Waits, by: str
) -> None:
    rt = await processes.runtime(careful, settings=quick())
    handle = await rt.start(careful(), id="one")
    await waits.on("message", "one", "go on")
    await cancelled(rt, handle)
    assert ran == {"before": 1, "tidy": 1}
    client: hf.Client = rt if by == "itself" else await processes.client()
    if by == "nobody yet":
        await processes.leave(rt)
    waits.forget()
    assert await client.resume("one") is True
    if by == "nobody yet":
        assert (await client.status("one")).status is hf.Status.ENQUEUED
        await processes.runtime(careful, settings=quick())
    await waits.on("message", "one", "go on")
    found = await client.status("one")
    assert (found.status, found.cancelling, found.finished_at) == (hf.Status.PENDING, False, None)
    assert found.attempts == 1  # claims count from zero [W13]
    await client.send("one", "now", "go on")
    assert await client.handle(careful, "one").result(PATIENCE) == ["before", "now", "after"]
    assert ran == {"before": 1, "after": 1, "tidy": 2}
    assert await journal(database, "one") == [
        ("1", "step", "do"),
        ("2", "recv", "go on"),
        ("3", "step", "do"),
        ("4", "step", "do"),
    ]


async def test_w12_it_begins_within_milliseconds_and_results_are_waited_for_again(
    processes: Processes, waits: Waits
) -> None:
    rt = await processes.runtime(careful, settings=quick())
    client = await processes.client()
    for round_ in range(10):
        handle = await rt.start(careful(), id=f"w{round_}")
        await waits.on("message", handle.id, "go on")
        await cancelled(rt, handle)
        # At once: whoever cancelled it must not do so again.
        assert await client.resume(handle.id)
        result = asyncio.create_task(handle.result())
        await client.send(handle.id, "now", "go on")
        assert await within(2, result) == ["before", "now", "after"]


async def test_w12_branches_go_on_together(processes: Processes, waits: Waits) -> None:
    @hf.workflow
    async def branches() -> list[str]:
        async def branch(name: str) -> str:
            return await do(f"begin {name}") + await hf.recv(name, type=str) + await do(f"end {name}")

        try:
            return list(await asyncio.gather(branch("a"), branch("b"), branch("c")))
        except asyncio.CancelledError:
            await asyncio.gather(do("tidy 1"), do("tidy 2"))
            raise

    rt = await processes.runtime(branches, settings=quick())
    handle = await rt.start(branches(), id="one")
    await handle.send("a", "!")
    for name in "bc":
        await waits.on("message", "one", name)
    while not ran["end a"]:
        await asyncio.sleep(0)
    await cancelled(rt, handle)
    assert ran["tidy 1"] == ran["tidy 2"] == 1
    await rt.resume("one")
    await handle.send("b", "?")
    await handle.send("c", ".")
    assert await handle.result(PATIENCE) == ["begin a!end a", "begin b?end b", "begin c.end c"]
    assert {label: times for label, times in ran.items() if times != 1} == {}


@hf.workflow
async def leaves_traces() -> list[str]:
    """Takes, closes and says things while it cleans up."""
    await log.write("begun")
    try:
        return [await hf.recv("go on"), await hf.recv("more")]
    except asyncio.CancelledError:
        await hf.recv("more")
        await log.write("cancelled")
        await log.close()
        await news.set("cancelled")
        raise


async def test_w12_m8_what_the_clean_up_took_comes_again_and_what_it_closed_is_open(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(leaves_traces, settings=quick())
    handle = await rt.start(leaves_traces(), id="one")
    await handle.send("more", "kept")
    await waits.on("message", "one", "go on")
    await cancelled(rt, handle)
    assert [message.consumed_by for message in await rt.messages("one")] == ["3"]
    assert (await rt.streams("one"))[0].closed
    assert await rt.resume("one")
    assert [message.consumed_by for message in await rt.messages("one")] == [None]
    assert not (await rt.streams("one"))[0].closed
    await handle.send("go on", "now")
    assert await handle.result(PATIENCE) == ["now", "kept"]
    # What was said was said.
    assert await handle.read(log).collect() == ["begun", "cancelled"]
    assert await handle.get(news) == "cancelled"


@hf.transaction
async def book(connection: Connection) -> None:
    await connection.execute("insert into public.booked values (1)")


@hf.workflow
async def child() -> str:
    return "child"


@hf.workflow
async def listener() -> None:
    await hf.recv("never")


EFFECTS: dict[str, Callable[[], Awaitable[object]]] = {
    "send": lambda: hf.send("two", "hello", "greeting"),
    "set": lambda: news.set("hello"),
    "write": lambda: log.write("hello"),
    "transaction": lambda: book(),
    "start": lambda: hf.start(child()),
    "step": lambda: do("once"),
}


@hf.workflow
async def has_effect(effect: str) -> str:
    await EFFECTS[effect]()
    return await hf.recv("go on", type=str)


@pytest.mark.parametrize("effect", EFFECTS)
async def test_w12_w2_what_was_committed_when_it_was_cancelled_is_not_done_twice(
    processes: Processes, database: Connection, points: Points, waits: Waits, effect: str
) -> None:
    await database.execute("create table public.booked (x integer)")
    rt = await processes.runtime(has_effect, listener, child, settings=quick())
    await rt.start(listener(), id="two")
    await waits.on("message", "two", "never")
    after = "transaction.after_commit" if effect == "transaction" else "writer.after_commit"

    def cancel() -> None:
        rt.executor.runs["one"].cancel()

    # Committed, and its caller has not been told.
    points.at(f"{effect}.before_commit", lambda: points.at(after, cancel))
    handle = await rt.start(has_effect(effect), id="one")
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    row = await database.fetchrow("select outcome, covered from holdfast.steps where workflow_id = 'one'")
    assert row is not None
    if effect != "transaction":  # of which the reply may come before the cancellation
        assert tuple(row) == (2, 0)
    assert await rt.resume("one")
    await handle.send("go on", "now")
    assert await handle.result(PATIENCE) == "now"
    counts = {
        "send": "select count(*) from holdfast.messages where workflow_id = 'two'",
        "set": "select count(*) from holdfast.events",
        "write": "select count(*) from holdfast.stream_values",
        "transaction": "select count(*) from public.booked",
        "start": "select count(*) from holdfast.workflows where name = 'child'",
    }
    assert ran["once"] == 1 if effect == "step" else await database.fetchval(counts[effect]) == 1
    assert [step.step_id for step in await rt.steps("one")] == ["1", "2"]


@hf.workflow
async def waits_for_children() -> list[str]:
    handle = await hf.start(careful(), id="started")
    return [*await careful(), *await handle.result()]


@pytest.mark.parametrize("here", [True, False])
async def test_w12_children_that_were_cancelled_with_it_go_on_with_it(
    processes: Processes, database: Connection, waits: Waits, here: bool
) -> None:
    rt = await processes.runtime(waits_for_children, *([careful] if here else []), settings=quick())
    if not here:
        await processes.runtime(careful, settings=quick())
    handle = await rt.start(waits_for_children(), id="one")
    aside = await rt.start(hf.WorkflowRef[[], list[str]]("careful")(), id="aside")
    for name in ("one/2", "started", "aside"):
        await waits.on("message", name, "go on")
    await cancelled(rt, aside)
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    assert await handle.resume()  # the children may still be on their way out
    await rt.send("one/2", "a", "go on")
    await rt.send("started", "b", "go on")
    assert await handle.result(PATIENCE) == ["before", "a", "after", "before", "b", "after"]
    assert await state(database, "aside") == "CANCELLED"


async def test_w12_a_child_that_was_cancelled_by_itself_stays_so(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def parent() -> str:
        handle = await hf.start(careful(), id="started")
        try:
            await handle.result()
        except hf.WorkflowCancelled:
            await do("seen")
        return await hf.recv("go on", type=str)

    rt = await processes.runtime(parent, careful, settings=quick())
    handle = await rt.start(parent(), id="one")
    await waits.on("message", "started", "go on")
    await cancelled(rt, rt.handle("started"))
    await waits.on("message", "one", "go on")
    await cancelled(rt, handle)
    await handle.resume()
    await handle.send("go on", "now")
    assert await handle.result(PATIENCE) == "now"
    assert ran["seen"] == 1
    assert await state(database, "started") == "CANCELLED"


async def test_w12_one_that_still_cleans_up_is_waited_for(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def tidy() -> str:
        try:
            return await hf.recv("go on", type=str)
        except asyncio.CancelledError:
            await hf.recv("tidied")
            raise

    rt = await processes.runtime(tidy, settings=quick())
    client = await processes.client()
    handle = await rt.start(tidy(), id="one")
    await waits.on("message", "one", "go on")
    await handle.cancel()
    await waits.on("message", "one", "tidied")
    waits.forget()
    resuming = asyncio.create_task(client.resume("one"))
    await waits.on("end", "one")
    await client.send("one", None, "tidied")
    assert await within(PATIENCE, resuming) is True
    await client.send("one", "now", "go on")
    assert await handle.result(PATIENCE) == "now"


async def test_w12_cancelled_before_it_began(processes: Processes, database: Connection) -> None:
    client = await processes.client()
    handle = await client.start(child(), id="one")
    await cancelled(client, handle)
    assert await handle.resume()
    await processes.runtime(child)
    assert await handle.result(PATIENCE) == "child"


async def test_w12_quarantined(processes: Processes, database: Connection, waits: Waits) -> None:
    rt = await processes.runtime(careful, settings=quick())
    handle = await rt.start(careful(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    await database.execute(
        "update holdfast.workflows set status = 6, executor_id = null, claims = 5, finished_at = now()"
    )
    client = await processes.client()
    with pytest.raises(hf.WorkflowQuarantined):
        await client.handle("one").result(PATIENCE)
    assert await client.resume("one")
    rt = await processes.runtime(careful, settings=quick())
    await rt.send("one", "now", "go on")
    assert await rt.handle("one").result(PATIENCE) == ["before", "now", "after"]
    assert (await rt.status("one")).attempts == 1
    assert ran["before"] == 1
    assert handle.id == "one"


@hf.workflow
async def tells() -> object:
    await do("before")
    return object() if broken else "mended"


async def test_w12_w6_a_result_that_could_not_be_stored(processes: Processes) -> None:
    rt = await processes.runtime(tells)
    broken.append(True)
    with pytest.raises(hf.WorkflowFailed) as raised:
        await rt.run(tells(), id="one")
    assert isinstance(raised.value.__cause__, hf.PayloadNotSerializable)
    broken.clear()
    assert await rt.resume("one")
    assert await rt.handle("one").result(PATIENCE) == "mended"
    assert ran["before"] == 1


async def test_w12_what_failed_by_itself_or_succeeded_is_not_resumed(
    processes: Processes, database: Connection
) -> None:
    @hf.workflow
    async def fails() -> None:
        raise ValueError("as always")

    rt = await processes.runtime(child, fails)
    with pytest.raises(hf.WorkflowFailed):
        await rt.run(fails(), id="failed")
    await rt.run(child(), id="succeeded")
    with pytest.raises(hf.WorkflowConflict, match=r"ValueError.*fork"):
        await rt.resume("failed")
    with pytest.raises(hf.WorkflowConflict, match="fork"):
        await rt.resume("succeeded")
    assert await state(database, "failed") == "ERROR"
    assert await state(database, "succeeded") == "SUCCESS"
    with pytest.raises(hf.WorkflowNotFound):
        await rt.resume("nobody")


async def test_w12_what_is_active_is_left_alone(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(careful)
    handle = await rt.start(careful(), id="one")
    await waits.on("message", "one", "go on")
    assert await handle.resume() is False
    assert await rt.resume("one") is False
    await handle.send("go on", "now")
    assert await handle.result(PATIENCE) == ["before", "now", "after"]
    client = await processes.client()
    await client.start(tells(), id="enqueued")
    assert await client.resume("enqueued") is False
    assert await state(database, "enqueued") == "ENQUEUED"


@pytest.mark.parametrize("given", ["at its start", "at its definition"])
async def test_w12_w9_its_timeout_counts_anew(
    processes: Processes, database: Connection, dsn: str, waits: Waits, given: str
) -> None:
    @hf.workflow(timeout=600 if given == "at its definition" else None)
    async def limited() -> str:
        return await hf.recv("go on", type=str)

    rt = await processes.runtime(limited, settings=quick())
    async with DatabaseClock(dsn) as clock:
        client = await processes.client()
        remote = hf.WorkflowRef[[], str]("limited")
        handle = await client.start(remote(), id="one", timeout=600 if given == "at its start" else None)
        await waits.on("message", "one", "go on")
        for _ in range(3):
            await rt.cancel("one")
            with pytest.raises(hf.WorkflowCancelled):
                await handle.result(PATIENCE)
            await clock.advance(1000)
            waits.forget()
            assert await rt.resume("one")
            await waits.on("message", "one", "go on")
        assert 590 < await remaining(database) <= 600
        await handle.send("go on", "now")
        assert await handle.result(PATIENCE) == "now"


async def remaining(database: Connection) -> float:
    """Seconds until the only workflow's own timeout."""
    found = await database.fetchval(
        "select extract(epoch from deadline - holdfast.now()) from holdfast.workflows"
    )
    return float(found)


async def test_w12_cancelled_and_resumed_again_and_again(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(careful, settings=quick())
    handle = await rt.start(careful(), id="one")
    for times in range(1, 6):
        await waits.on("message", "one", "go on")
        await cancelled(rt, handle)
        assert ran["tidy"] == times
        waits.forget()
        assert await handle.resume()
    await handle.send("go on", "now")
    assert await handle.result(PATIENCE) == ["before", "now", "after"]
    assert ran["before"] == 1


async def test_w12_a_child_that_nobody_runs_is_resumed_before_its_parent_has_seen_its_end(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def parent() -> str:
        try:
            return await hf.WorkflowRef[[], str]("child")()
        finally:
            await do("tidy")

    rt = await processes.runtime(parent, settings=quick())
    client = await processes.client()
    handles = [await rt.start(parent(), id=f"p{number}") for number in range(20)]
    for handle in handles:
        await waits.on("end", f"{handle.id}/1")
    for handle in handles:
        # The child is CANCELLED at once: its parent hears of that and of its own end at the same time.
        await client.cancel(handle.id)
    for handle in handles:
        with pytest.raises(hf.WorkflowCancelled):
            await handle.result(PATIENCE)
        assert await client.resume(handle.id)
    await processes.runtime(child, settings=quick())
    for handle in handles:
        assert await handle.result(PATIENCE) == "child"
        assert [entry[1] for entry in await journal(database, handle.id)] == ["run", "step"]


async def test_w12_n4_a_resume_whose_bell_nobody_hears_is_found(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(careful, settings=quick())
    client = await processes.client()
    handle = await rt.start(careful(), id="one")
    await waits.on("message", "one", "go on")
    await cancelled(rt, handle)
    waits.forget()
    async with processes.unheard(database):
        assert await client.resume("one")
    await waits.on("message", "one", "go on")
    await handle.send("go on", "now")
    assert await handle.result(PATIENCE) == ["before", "now", "after"]


@hf.step
async def endless(item: int) -> int:
    await asyncio.sleep(1000)
    return item


@hf.workflow
async def busy() -> None:
    async for _ in hf.each(endless, range(5)):
        pass


async def test_w12_what_was_known_of_the_last_cancelling_does_not_reach_who_goes_on(
    processes: Processes,
) -> None:
    rt = await processes.runtime(busy, settings=quick(heartbeat=0.02))

    async def cancel_and_resume(handle: hf.Handle[None]) -> None:
        for _ in range(5):
            await asyncio.sleep(0.05)
            assert await handle.cancel()
            with pytest.raises(hf.WorkflowCancelled):
                await handle.result(PATIENCE)
            assert await handle.resume()
            await asyncio.sleep(0.2)
            assert (await handle.status()).status in ("ENQUEUED", "PENDING")

    handles = [await rt.start(busy()) for _ in range(15)]
    await asyncio.gather(*map(cancel_and_resume, handles))


async def test_w12_a_cancelling_that_comes_late_finds_the_epoch_gone_by(
    processes: Processes, database: Connection, dsn: str
) -> None:
    rt = await processes.runtime(busy, settings=quick())
    handle = await rt.start(busy(), id="a")
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    await processes.leave(rt)
    epoch = await database.fetchval("select epoch from holdfast.workflows")
    resumer = await connect(dsn)
    try:
        async with resumer.transaction():
            await resumer.fetch("select * from holdfast.resume_workflow('a', null, 'c')")
            late = asyncio.create_task(
                database.fetch("select * from holdfast.cancel_workflow('a', 'c', $1)", epoch)
            )
            await asyncio.sleep(0.2)
            assert not late.done()  # it waits for the row
        assert await late == []
    finally:
        await resumer.close()
    assert await state(database, "a") == "ENQUEUED"
