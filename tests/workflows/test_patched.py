"""`patched`: which side of a change of code an execution is on; the same in every life [W5, API 3]."""

from __future__ import annotations

import asyncio
import os

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits
from tests.runtime.witness import PATIENCE, held, journal, quick, until

ran: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    ran.clear()


@hf.step
async def do(label: str) -> str:
    ran.append(label)
    return label


@hf.step
async def do_better(label: str) -> str:
    ran.append(label.upper())
    return label.upper()


@hf.workflow(name="changing")
async def old() -> str:
    said = await do("a")
    await hf.recv("first")
    said += await do("b")
    await hf.recv("go on")
    return said + await do("c")


@hf.workflow(name="changing")
async def new() -> str:
    said = await do("a")
    await hf.recv("first")
    said += await (do_better("b") if await hf.patched("better") else do("b"))
    await hf.recv("go on")
    return said + await (do_better("c") if await hf.patched("better") else do("c"))


@hf.workflow(name="changing")
async def newest() -> str:
    """The change is history, and its guard has been taken out."""
    said = await do("a")
    await hf.recv("first")
    said += await do_better("b")
    await hf.recv("go on")
    return said + await do_better("c")


async def come_to(
    processes: Processes, waits: Waits, code: hf.Workflow[[], str], topic: str, *sent: str
) -> None:
    """A life in which it comes to wait for a topic."""
    waits.forget()
    rt = await processes.runtime(code, settings=quick())
    await rt.start(code(), id="one")
    for topic_sent in sent:
        await rt.send("one", None, topic_sent)
    await waits.on("message", "one", topic)
    await processes.leave(rt)


async def finish(processes: Processes, code: hf.Workflow[[], str], *sent: str) -> str:
    rt = await processes.runtime(code, settings=quick())
    handle = await rt.start(code(), id="one")
    for topic in sent:
        await handle.send(topic, None)
    return await handle.result(PATIENCE)


async def test_patched_is_true_for_what_begins_after_the_change(
    processes: Processes, database: Connection
) -> None:
    assert await finish(processes, new, "first", "go on") == "aBC"
    steps = await journal(database, "one")
    assert ("#better", "patched", "better") in steps
    assert [found for found in steps if "#" not in found[0]] == [
        ("1", "step", "do"),
        ("2", "recv", "first"),
        ("3", "step", "do_better"),
        ("4", "recv", "go on"),
        ("5", "step", "do_better"),
    ]
    assert steps.index(("#better", "patched", "better")) == 2, "ahead of what the new way records"


async def test_patched_is_false_for_what_came_here_before_the_change(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    await come_to(processes, waits, old, "go on", "first")
    await come_to(processes, waits, new, "go on")
    assert await finish(processes, new, "go on") == "abc"
    assert [found for found in await journal(database, "one") if found[1] == "patched"] == []
    assert ran == ["a", "b", "c"]


async def test_patched_is_true_for_what_had_not_come_so_far(processes: Processes, waits: Waits) -> None:
    await come_to(processes, waits, old, "first")
    await come_to(processes, waits, new, "go on", "first")
    await come_to(processes, waits, new, "go on")
    assert await finish(processes, new, "go on") == "aBC"
    assert ran == ["a", "B", "C"]


@pytest.mark.parametrize("begun_under", ["old", "new"])
async def test_patched_the_answer_is_the_same_in_every_life(
    processes: Processes, waits: Waits, begun_under: str
) -> None:
    await come_to(processes, waits, old if begun_under == "old" else new, "go on", "first")
    for _ in range(3):
        await come_to(processes, waits, new, "go on")
    assert await finish(processes, new, "go on") == ("abc" if begun_under == "old" else "aBC")
    assert len(ran) == 3


async def test_patched_may_be_taken_out_when_nothing_older_is_left(
    processes: Processes, waits: Waits
) -> None:
    await come_to(processes, waits, new, "go on", "first")
    assert await finish(processes, newest, "go on") == "aBC"
    assert ran == ["a", "B", "C"]


async def test_patched_old_code_does_not_match_what_went_the_new_way(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    await come_to(processes, waits, new, "go on", "first")
    waiting = await processes.runtime(old, settings=quick())
    await until(lambda: _parked(database), "parked")
    await processes.leave(waiting)
    assert await finish(processes, new, "go on") == "aBC"


async def _parked(database: Connection) -> bool:
    return bool(await database.fetchval("select parked is not null from holdfast.workflows"))


async def test_patched_a_call_that_waits_with_its_deadline_was_there_before(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    """It is no record yet, but has its row: the new way must not stumble over it."""

    @hf.workflow(name="changing")
    async def before() -> str:
        return str(await hf.recv("go on", timeout=600))

    @hf.workflow(name="changing")
    async def after() -> str:
        if await hf.patched("ask first"):
            await do("ask")
        return str(await hf.recv("go on", timeout=600))

    await come_to(processes, waits, before, "go on")
    assert await database.fetchval("select count(*) from holdfast.steps") == 1
    await come_to(processes, waits, after, "go on")
    assert await finish(processes, after, "go on") == "None"
    assert ran == []


async def test_patched_in_a_loop_does_not_change_its_mind(processes: Processes, waits: Waits) -> None:
    @hf.workflow(name="changing")
    async def loop() -> str:
        said = ""
        for number in range(4):
            await hf.recv(str(number))
            said += await do("x")
        return said

    @hf.workflow(name="changing")
    async def better_loop() -> str:
        said = ""
        for number in range(4):
            await hf.recv(str(number))
            said += await (do_better("x") if await hf.patched("loop") else do("x"))
        return said

    await come_to(processes, waits, loop, "2", "0", "1")
    await come_to(processes, waits, better_loop, "3", "2")
    assert await finish(processes, better_loop, "3") == "xxxx"


async def test_patched_in_branches_gives_one_answer_and_one_record(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    @hf.workflow(name="changing")
    async def branches() -> str:
        async def branch(number: int) -> str:
            if number % 2:
                await hf.sleep(0)
            return await (do_better("x") if await hf.patched("change") else do("x"))

        said = await asyncio.gather(*(branch(number) for number in range(8)))
        await hf.recv("go on")
        return "".join(said)

    await come_to(processes, waits, branches, "go on")
    await come_to(processes, waits, branches, "go on")
    assert await finish(processes, branches, "go on") == "X" * 8
    assert len([found for found in await journal(database, "one") if found[1] == "patched"]) == 1


async def test_patched_changes_nothing_in_the_order_of_branches(processes: Processes, waits: Waits) -> None:
    """Live it gives way to nobody, as in a replay: what hangs on who comes first repeats [W4a]."""
    seen: list[list[int]] = []

    @hf.workflow(name="changing")
    async def race() -> str:
        order: list[int] = []

        async def branch(number: int) -> None:
            if number % 2:
                assert await hf.patched(f"change {number}")
            order.append(number)
            await do(str(number))
            order.append(number)

        await asyncio.gather(*(branch(number) for number in range(10)))
        seen.append(order)
        await hf.recv("go on")
        return "done"

    await come_to(processes, waits, race, "go on")
    await come_to(processes, waits, race, "go on")
    assert await finish(processes, race, "go on") == "done"
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][:10] == list(range(10))


@pytest.mark.parametrize("when", ["before", "after"])
async def test_patched_stopped_around_its_commit_it_decides_again(
    processes: Processes, points: Points, when: str
) -> None:
    rt = await processes.runtime(new, settings=quick())
    killed = points.kill(rt, "patched.before_commit", when)
    await rt.start(new(), id="one")
    await rt.send("one", None, "first")
    await killed.wait()
    await processes.leave(rt)
    assert await finish(processes, new, "go on") == "aBC"
    assert ran.count("C") == 1


async def test_patched_goes_ahead_of_a_transaction(
    processes: Processes, database: Connection, dsn: str, points: Points
) -> None:
    """Whose commit is on another connection: the record of the change must not come after it."""
    change = asyncio.Event()

    @hf.transaction
    async def book(connection: Connection, value: int) -> int:
        return value

    @hf.workflow(name="changing")
    async def books() -> str:
        async def changed() -> None:
            await change.wait()
            if await hf.patched("book"):
                await book(1)

        await asyncio.gather(changed(), do("on its way when the change comes"))
        return "done"

    rt = await processes.runtime(books, settings=quick())
    async with held(dsn, "steps"):
        handle = await rt.start(books(), id="one")
        batches = points.passed["writer.before_commit"]
        await until(lambda: _passed(points, "step.before_commit"), "the step's record on its way")
        change.set()
        await until(lambda: _passed(points, "patched.before_commit"), "the change's record behind it")
        for _ in range(50):
            await database.fetchval("select 1")
        assert points.passed["writer.before_commit"] <= batches + 1
    assert await handle.result(PATIENCE) == "done"
    kinds = [kind for _, kind, _ in await journal(database, "one")]
    assert kinds == ["step", "patched", "transaction"]


async def _passed(points: Points, name: str) -> bool:
    return points.passed[name] > 0


async def test_patched_in_another_generation_is_asked_anew(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    @hf.workflow(name="changing")
    async def before(round_: int = 0) -> str:
        await do("a")
        await hf.recv(f"go on {round_}")
        if round_ == 0:
            hf.continue_as(before(1))
        return "old"

    @hf.workflow(name="changing")
    async def after(round_: int = 0) -> str:
        await (do_better("a") if await hf.patched("change") else do("a"))
        await hf.recv(f"go on {round_}")
        if round_ == 0:
            hf.continue_as(after(1))
        return "new"

    await come_to(processes, waits, before, "go on 0")
    assert await finish(processes, after, "go on 0", "go on 1") == "new"
    assert ran == ["a", "A"]
    assert ("1~#change", "patched", "change") in await journal(database, "one")


async def test_patched_says_where_it_works_and_what_a_name_is(processes: Processes) -> None:
    @hf.step
    async def inside() -> None:
        await hf.patched("change")

    @hf.workflow
    async def work() -> None:
        for name in ("", "a\0b", "x" * 257, "\ud800"):
            with pytest.raises(hf.InvalidName):
                hf.patched(name)
        await inside()

    rt = await processes.runtime(work, settings=quick())
    with pytest.raises(hf.WorkflowFailed) as failed:
        await rt.run(work())
    assert isinstance(failed.value.__cause__, hf.NotInWorkflow)
    with pytest.raises(hf.NotInWorkflow, match="patched"):
        hf.patched("change")


async def test_patched_any_name_that_may_be_one_comes_back(processes: Processes, waits: Waits) -> None:
    names = ["#", "1", "1~2", "a.b", "über", "%s", "'; --", "x" * 256, os.fsdecode(b"plain")]

    @hf.workflow(name="changing")
    async def many() -> str:
        answers = [await hf.patched(name) for name in names]
        await hf.recv("go on")
        return str(answers)

    await come_to(processes, waits, many, "go on")
    assert await finish(processes, many, "go on") == str([True] * len(names))


@hf.workflow
async def waiting_child(number: int) -> int:
    return int(await hf.recv("child"))


async def test_patched_w5_an_each_whose_children_run_was_there_before(
    processes: Processes, waits: Waits, database: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """None of them has ended, so nothing of the each itself is recorded; but they are there."""

    @hf.workflow(name="changing")
    async def before() -> int:
        return sum([found.value async for found in hf.each(waiting_child, range(3))])

    @hf.workflow(name="changing")
    async def careless() -> int:
        await do("prepare")
        return sum([found.value async for found in hf.each(waiting_child, range(3))])

    @hf.workflow(name="changing")
    async def guarded() -> int:
        if await hf.patched("prepare"):
            await do("prepare")
        return sum([found.value async for found in hf.each(waiting_child, range(3))])

    rt = await processes.runtime(before, waiting_child, settings=quick())
    await rt.start(before(), id="one")
    children = [f"one/1#{number}" for number in range(3)]
    for workflow_id in children:
        await waits.on("message", workflow_id, "child")
    await processes.leave(rt)
    rt = await processes.runtime(careless, settings=quick())

    async def parked() -> bool:
        return "workflow parked" in caplog.text

    await until(parked, "parked")
    await processes.leave(rt)
    rt = await processes.runtime(guarded, waiting_child, settings=quick())
    for workflow_id in children:
        await rt.send(workflow_id, 2, "child")
    assert await rt.handle("one").result(PATIENCE) == 6
    assert await database.fetchval("select count(*) from holdfast.workflows") == 4
    assert ran == []
