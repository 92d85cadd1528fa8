"""Fan-out: outcomes of steps, transactions and workflows in completion order, a bounded number at once."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

import holdfast as hf
from holdfast import _observe
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits, rows
from tests.runtime.witness import PATIENCE, Signals, quick, state, until
from tests.workflows.test_determinism import LOOPS, NewLoop

ran: Counter[Any] = Counter()
at_once: list[int] = [0, 0]
"""How many bodies run now, and how many ran at most."""
gates: dict[Any, asyncio.Event] = {}
pulled: list[int] = []


@pytest.fixture(autouse=True)
def _anew() -> None:
    ran.clear()
    gates.clear()
    pulled.clear()
    at_once[:] = [0, 0]


def gate(item: object) -> asyncio.Event:
    return gates.setdefault(item, asyncio.Event())


def pull(items: Iterator[int]) -> Iterator[int]:
    """Notes what is taken from an iterable."""
    for item in items:
        pulled.append(item)
        yield item


@hf.step
async def double(item: int) -> int:
    ran[item] += 1
    at_once[0] += 1
    at_once[1] = max(at_once)
    await asyncio.sleep(0)
    at_once[0] -= 1
    if item == 13:
        raise ValueError("unlucky")
    return 2 * item


@hf.step
async def gated(item: int) -> int:
    ran[item] += 1
    await gate(item).wait()
    return item


@hf.transaction
async def note(connection: Connection, item: int) -> int:
    if item == 13:
        raise ValueError("unlucky")
    await connection.execute("insert into public.noted values ($1)", item)
    return item


@hf.workflow
async def child(item: int) -> int:
    if item == 13:
        raise ValueError("unlucky")
    return await double(item) + 1


@hf.workflow
async def doubled(numbers: list[int]) -> list[list[Any]]:
    return [
        [found.item, found.value, str(found.error)]
        async for found in hf.each(double, numbers)  #
    ]


async def test_outcomes_of_steps_errors_among_them(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(doubled, settings=quick())
    handle = await rt.start(doubled([1, 13, 3]), id="one")
    found = await handle.result(PATIENCE)
    assert sorted(found) == [[1, 2, "None"], [3, 6, "None"], [13, None, "unlucky"]]
    ids = {row.step_id: (row.kind, row.name) for row in await rt.steps("one")}
    items = {step_id: call for step_id, call in ids.items() if "#" in step_id}
    assert items == {f"1#{index}": ("step", "double") for index in range(3)}
    assert {call for step_id, call in ids.items() if "#" not in step_id} == {("each", "double")}


async def test_outcomes_of_transactions(processes: Processes, database: Connection) -> None:
    await database.execute("create table public.noted (item integer)")

    @hf.workflow
    async def noting() -> list[Any]:
        return [[found.item, found.error is None] async for found in hf.each(note, [1, 13, 2])]

    rt = await processes.runtime(noting, settings=quick())
    handle = await rt.start(noting(), id="one")
    assert sorted(await handle.result(PATIENCE)) == [[1, True], [2, True], [13, False]]
    assert sorted(row[0] for row in await database.fetch("select item from public.noted")) == [1, 2]


async def test_outcomes_of_workflows_and_references_to_them(
    processes: Processes, database: Connection
) -> None:
    reference = hf.WorkflowRef[[int], int]("child")

    @hf.workflow
    async def parent() -> list[list[Any]]:
        direct = [[out.item, out.value] async for out in hf.each(child, [1, 13, 2], limit=2)]
        return direct + [[out.item, out.value] async for out in hf.each(reference, [5])]

    rt = await processes.runtime(parent, child, settings=quick())
    handle = await rt.start(parent(), id="one")
    found = await handle.result(PATIENCE)
    assert sorted(found[:3]) == [[1, 3], [2, 5], [13, None]]
    assert found[3:] == [[5, 11]]
    children = await database.fetch("select id from holdfast.workflows where parent_id = 'one' order by id")
    # The second each is the call after the batches of the first.
    assert [row[0] for row in children[:3]] == ["one/1#0", "one/1#1", "one/1#2"]
    assert len(children) == 4


async def test_outcomes_come_in_the_order_of_completion(processes: Processes) -> None:
    @hf.workflow
    async def ordered() -> list[int]:
        seen = []
        async for found in hf.each(gated, range(4)):
            seen.append(found.item)
            await hf.set_event("seen", found.item)
        return seen

    rt = await processes.runtime(ordered, settings=quick())
    handle = await rt.start(ordered(), id="one")
    changes = aiter(handle.watch(hf.Event[int]("seen")))
    async with asyncio.timeout(PATIENCE):
        for item in (2, 0, 3, 1):
            gate(item).set()
            assert await anext(changes) == item
    assert await handle.result(PATIENCE) == [2, 0, 3, 1]


async def test_no_more_than_limit_at_once_and_items_are_taken_lazily(processes: Processes) -> None:
    @hf.workflow
    async def limited() -> int:
        seen = 0
        async for _ in hf.each(double, pull(iter(range(200))), limit=7):
            seen += 1
            assert len(pulled) - seen <= 2 * 7
        return seen

    rt = await processes.runtime(limited, settings=quick())
    assert await (await rt.start(limited(), id="one")).result(PATIENCE) == 200
    assert 2 <= at_once[1] <= 7
    assert pulled == list(range(200))


async def test_ten_thousand_items_with_a_bounded_number_of_tasks(
    processes: Processes, database: Connection
) -> None:
    most = 0

    @hf.workflow
    async def many() -> int:
        nonlocal most
        total = 0
        async for found in hf.each(double, range(20, 10_020), limit=100):
            total += found.value
            most = max(most, len(asyncio.all_tasks()))
        return total

    rt = await processes.runtime(many, settings=quick())
    before = len(asyncio.all_tasks())
    handle = await rt.start(many(), id="one")
    assert await handle.result(60) == sum(2 * item for item in range(20, 10_020))
    assert most <= before + 110
    count = await database.fetchval("select count(*) from holdfast.steps where kind = 'each'")
    assert count <= 5000
    assert max(ran.values()) == 1


async def test_w2_w3_a_replay_gives_the_same_outcomes_in_the_same_order_without_io(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    seen: list[list[Any]] = []

    @hf.workflow
    async def replayed() -> None:
        found = [[out.item, out.value, repr(out.error)] async for out in hf.each(double, range(40), limit=9)]
        seen.append(found)
        await hf.recv("go on")

    rt = await processes.runtime(replayed, settings=quick())
    await rt.start(replayed(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    before = await rows(database, "steps")
    waits.forget()
    points.passed.clear()
    await processes.runtime(replayed, settings=quick())
    await waits.on("message", "one", "go on")
    assert seen[1] == seen[0]
    assert len(seen[0]) == 40
    assert max(ran.values()) == 1
    assert await rows(database, "steps") == before
    assert points.passed["step.before_body"] == 0


async def test_w2_outcomes_recorded_but_not_handed_out_come_first_in_the_order_of_their_records(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    lives: list[list[int]] = []

    @hf.workflow
    async def slow_loop() -> list[int]:
        seen: list[int] = []
        lives.append(seen)
        async for found in hf.each(gated, range(5)):
            seen.append(found.item)
            await hf.recv("next")
        return seen

    rt = await processes.runtime(slow_loop, settings=quick())
    await rt.start(slow_loop(), id="one")
    gate(3).set()
    await waits.on("message", "one", "next")
    for item in (4, 1, 2):
        gate(item).set()
        await _recorded(database, item)
    await processes.leave(rt)
    waits.forget()
    rt = await processes.runtime(slow_loop, settings=quick())
    await waits.on("message", "one", "next")
    assert lives == [[3], [3]]
    for _ in range(5):
        await rt.send("one", None, "next")
    gate(0).set()
    assert await rt.handle(slow_loop, "one").result(PATIENCE) == [3, 4, 1, 2, 0]
    assert ran == {0: 2, 1: 1, 2: 1, 3: 1, 4: 1}


async def _recorded(database: Connection, item: int) -> None:
    query = "select count(*) from holdfast.steps where step_id = $1 and finished_at is not null"
    await until(lambda: database.fetchval(query, f"1#{item}"), f"recorded: item {item}")


async def test_nested_and_in_branches_of_gather(processes: Processes, waits: Waits) -> None:
    seen: list[list[Any]] = []

    @hf.workflow
    async def nested() -> None:
        order: list[Any] = []

        async def branch(base: int) -> None:
            async for outer in hf.each(double, range(base, base + 6), limit=2):
                order.append(outer.item)
                inner = hf.each(child, range(outer.item * 100, outer.item * 100 + 3))
                order.extend([found.item async for found in inner])

        await asyncio.gather(*(branch(base) for base in (20, 40, 60)))
        seen.append(order)
        await hf.recv("go on")

    for _ in range(3):
        rt = await processes.runtime(nested, child, settings=quick())
        waits.forget()
        await rt.start(nested(), id="one")
        await waits.on("message", "one", "go on")
        await processes.leave(rt)
    assert seen[1:] == [seen[0]] * 2
    assert len(seen[0]) == 3 * 6 * 4
    assert max(ran.values()) == 1


async def test_two_branches_may_iterate_one_each(processes: Processes, waits: Waits) -> None:
    seen: list[Any] = []

    @hf.workflow
    async def shared() -> None:
        outcomes = hf.each(double, range(60), limit=5)
        order: list[tuple[str, int]] = []

        async def branch(label: str) -> None:
            async for found in outcomes:
                order.append((label, found.item))
                await double(1000 + found.item)

        await asyncio.gather(branch("a"), branch("b"))
        seen.append(order)
        await hf.recv("go on")

    for _ in range(3):
        rt = await processes.runtime(shared, settings=quick())
        waits.forget()
        await rt.start(shared(), id="one")
        await waits.on("message", "one", "go on")
        await processes.leave(rt)
    assert seen[1:] == [seen[0]] * 2
    assert sorted(item for _, item in seen[0]) == list(range(60))
    assert {label for label, _ in seen[0]} == {"a", "b"}


async def test_w10_cancelling_the_workflow_cancels_what_runs(
    processes: Processes, database: Connection, signals: Signals
) -> None:
    ended: list[str] = []
    begun = asyncio.Event()

    @hf.step
    async def stuck(item: int) -> int:
        if item == 2:
            begun.set()
        if item == 0:
            return item
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(f"step {item}")
        return item

    @hf.workflow
    async def cancelled() -> None:
        try:
            async for _ in hf.each(stuck, range(100), limit=3):
                pass
        finally:
            cleaned = [out.value async for out in hf.each(double, [1, 2])]
            ended.append(f"cleaned {sorted(cleaned)}")

    rt = await processes.runtime(cancelled, settings=quick())
    handle = await rt.start(cancelled(), id="one")
    await asyncio.wait_for(begun.wait(), PATIENCE)
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    assert await state(database, "one") == "CANCELLED"
    assert ended[-1] == "cleaned [2, 4]"
    assert set(ended[:-1]) <= {f"step {item}" for item in range(1, 4)}
    outcomes = await database.fetch("select step_id, outcome from holdfast.steps where outcome = 2")
    assert {"1#1", "1#2"} <= {row["step_id"] for row in outcomes}


async def test_w10_a_crash_during_the_clean_up_is_cancelled_at_the_same_place(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    lives: list[list[Any]] = []

    @hf.workflow
    async def cancelled() -> None:
        seen: list[Any] = []
        lives.append(seen)
        outcomes = hf.each(gated, range(100), limit=3)
        try:
            async for found in outcomes:
                seen.append(found.item)
                await hf.set_event("seen", found.item)
        except asyncio.CancelledError:
            seen.append("cancelled")
            await hf.recv("clean up")
            with pytest.raises(asyncio.CancelledError):
                await anext(outcomes)
            seen.append([found.value async for found in hf.each(double, [3])])
            raise

    gate(1).set()
    rt = await processes.runtime(cancelled, settings=quick())
    handle = await rt.start(cancelled(), id="one")
    assert await handle.get(hf.Event[int]("seen"), timeout=PATIENCE) == 1
    await handle.cancel()
    await waits.on("message", "one", "clean up")
    await processes.leave(rt)
    waits.forget()
    rt = await processes.runtime(cancelled, settings=quick())
    await waits.on("message", "one", "clean up")
    assert lives == [[1, "cancelled"], [1, "cancelled"]]
    await rt.send("one", None, "clean up")
    with pytest.raises(hf.WorkflowCancelled):
        await rt.handle(cancelled, "one").result(PATIENCE)
    assert lives[1] == [1, "cancelled", [6]]
    assert set(ran) == {0, 1, 2, 3}


async def test_w10_children_are_cancelled_with_the_workflow(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def waiting(item: int) -> None:
        await hf.recv(str(item))

    @hf.workflow
    async def parent() -> None:
        async for _ in hf.each(waiting, range(3)):
            pass

    rt = await processes.runtime(parent, waiting, settings=quick())
    handle = await rt.start(parent(), id="one")
    for item in range(3):
        await waits.on("message", f"one/1#{item}", str(item))
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    for item in range(3):
        with pytest.raises(hf.WorkflowCancelled):
            await rt.handle(waiting, f"one/1#{item}").result(PATIENCE)


async def test_a_child_that_is_cancelled_is_an_outcome(processes: Processes, waits: Waits) -> None:
    @hf.workflow
    async def waiting(item: int) -> None:
        await hf.recv(str(item))

    @hf.workflow
    async def parent() -> str:
        return ", ".join([type(out.error).__name__ async for out in hf.each(waiting, range(1))])

    rt = await processes.runtime(parent, waiting, settings=quick())
    handle = await rt.start(parent(), id="one")
    await waits.on("message", "one/1#0", "0")
    await rt.cancel("one/1#0")
    assert await handle.result(PATIENCE) == "WorkflowCancelled"


async def test_leaving_the_loop_lets_what_runs_run_on_and_aclose_cancels_it(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    @hf.workflow
    async def leaving() -> int:
        async for found in hf.each(gated, itertools.count(), limit=3):
            if found.item == 1:
                break
        outcomes = hf.each(gated, itertools.count(100), limit=3)
        async for found in outcomes:
            assert found.item == 101
            break
        await outcomes.aclose()
        assert [found async for found in outcomes] == []
        await hf.recv("go on")
        return 1

    gate(1).set()
    gate(101).set()
    rt = await processes.runtime(leaving, settings=quick())
    handle = await rt.start(leaving(), id="one")
    await waits.on("message", "one", "go on")
    for item in (0, 100, 102):
        gate(item).set()
    await _recorded(database, 0)
    await rt.send("one", None, "go on")
    assert await handle.result(PATIENCE) == 1
    found = await database.fetch("select step_id from holdfast.steps where step_id like '%#%'")
    assert sorted(row[0] for row in found) == ["1#0", "1#1", "3#1"]


async def test_an_error_of_the_iterable_comes_after_what_it_gave(processes: Processes, waits: Waits) -> None:
    seen: list[Any] = []

    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("no more")

    @hf.workflow
    async def spoiled() -> None:
        found: list[Any] = []
        try:
            async for outcome in hf.each(double, failing()):
                await double(outcome.item)
                found.append(outcome.item)
        except LookupError as error:
            found.append(str(error))
        seen.append(found)
        await hf.recv("go on")

    for _ in range(2):
        rt = await processes.runtime(spoiled, settings=quick())
        waits.forget()
        await rt.start(spoiled(), id="one")
        await waits.on("message", "one", "go on")
        await processes.leave(rt)
    assert sorted(seen[0][:2]) == [1, 2]
    assert seen[0][2] == "no more"
    assert seen[1] == seen[0]


async def test_w5_fewer_items_than_the_journal_knows_is_nondeterminism(
    processes: Processes, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = [1, 2, 3]

    @hf.workflow
    async def changing() -> None:
        async for _ in hf.each(double, numbers):
            pass
        await hf.recv("go on")

    rt = await processes.runtime(changing, settings=quick())
    await rt.start(changing(), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    numbers.pop()
    rt = await processes.runtime(changing, settings=quick())

    async def parked() -> bool:
        return "an iterable of 2 items" in caplog.text

    await until(parked, "parked")
    assert (await rt.handle("one").status()).status is hf.Status.PENDING


async def test_what_each_does_not_take(processes: Processes) -> None:
    async def no_step(item: int) -> int:
        return item

    @hf.step
    async def two(first: int, second: int) -> int:
        return first + second

    with pytest.raises(hf.NotInWorkflow, match="each works inside a running workflow"):
        hf.each(double, [1])

    @hf.step
    async def within() -> str:
        with pytest.raises(hf.NotInWorkflow, match="each does not work inside a step"):
            hf.each(double, [1])
        return "refused"

    @hf.workflow
    async def refused() -> str:
        with pytest.raises(TypeError, match="a step, a transaction or a workflow"):
            hf.each(no_step, [1])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="second"):
            hf.each(two, [1])  # type: ignore[arg-type]
        with pytest.raises(hf.ConfigurationError, match="at least 1"):
            hf.each(double, [1], limit=0)
        with pytest.raises(TypeError, match="whole number"):
            hf.each(double, [1], limit=1.5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not iterable"):
            hf.each(double, 7)  # type: ignore[arg-type]
        assert [found async for found in hf.each(double, list[int]())] == []
        return await within()

    rt = await processes.runtime(refused, settings=quick())
    assert await (await rt.start(refused(), id="one")).result(PATIENCE) == "refused"


@pytest.mark.parametrize("new_loop", LOOPS)
def test_w4_branches_with_each_are_the_same_in_every_life(dsn: str, new_loop: NewLoop) -> None:
    seen: dict[str, list[list[Any]]] = {}

    @hf.workflow
    async def branches() -> None:
        order: list[Any] = []

        async def branch(base: int) -> None:
            async for found in hf.each(double, range(base, base + 12), limit=4):
                order.append(found.item)
                if found.item % 3 == 0:
                    order.append(await double(found.item * 100))

        await asyncio.gather(*(branch(base) for base in (20, 40, 60)))
        seen.setdefault(hf.current().workflow_id, []).append(order)
        await hf.recv("go on")

    async def live() -> None:
        async with Processes(dsn) as processes:
            for _ in range(3):
                waits = Waits()
                unsubscribe = _observe.subscribe(waits)
                rt = await processes.runtime(branches, settings=quick())
                for number in range(5):
                    await rt.start(branches(), id=str(number))
                for number in range(5):
                    await waits.on("message", str(number), "go on")
                await processes.leave(rt)
                unsubscribe()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(live())
    for first, *others in seen.values():
        assert others == [first, first]
    assert len(seen) == 5


def test_k4_an_outcome_shows_nothing_of_its_payload() -> None:
    assert repr(hf.Outcome(item="secret", value="secret")) == "<outcome: a value>"
    assert repr(hf.Outcome(item="secret", value=None, error=ValueError("secret"))) == "<outcome: ValueError>"


@pytest.mark.parametrize("many", [1000])
async def test_a_thousand_children_in_gather_and_in_a_task_group(processes: Processes, many: int) -> None:
    failed: list[str] = []

    @hf.workflow
    async def crowd() -> int:
        total = sum(await asyncio.gather(*(child(item) for item in range(20, 20 + many))))
        try:
            async with asyncio.TaskGroup() as group:
                for item in range(13, 13 + many):
                    group.create_task(child(item))
        except* ValueError as errors:
            failed.extend(str(error) for error in errors.exceptions)
        return total

    rt = await processes.runtime(crowd, child, settings=quick())
    handle = await rt.start(crowd(), id="one")
    assert await handle.result(120) == sum(2 * item + 1 for item in range(20, 20 + many))
    assert failed == ["unlucky"]
