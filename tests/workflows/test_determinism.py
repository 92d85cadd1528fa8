"""Step ids are births, and replay repeats the order of completion [W4, W4a], on every event loop."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from typing import Any

import anyio
import pytest

import holdfast as hf
from tests.processes import Processes, Waits, connect
from tests.runtime.witness import PATIENCE, journal, quick

RUNS = 50
bodies: Counter[tuple[str, str | None]] = Counter()


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def uvloop_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


LOOPS = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(
        eager_loop,
        id="eager",
        marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12"),
    ),
    pytest.param(
        uvloop_loop, id="uvloop", marks=pytest.mark.skipif(not find_spec("uvloop"), reason="uvloop is absent")
    ),
]
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@hf.step
async def say(label: str) -> str:
    here = hf.current()
    bodies[here.workflow_id, here.step_id] += 1
    for _ in range(random.randrange(4)):
        await asyncio.sleep(random.choice([0, 0, 0.001]))
    return label


async def sequence(label: str, length: int) -> None:
    for number in range(length):
        await say(f"{label}{number}")
        await asyncio.sleep(0)


async def nest(label: str) -> None:
    await say(f"{label} before")
    await asyncio.gather(sequence(f"{label} a", 2), sequence(f"{label} b", 1))
    await say(f"{label} after")


@hf.workflow
async def by_gather() -> None:
    await asyncio.gather(sequence("a", 3), nest("b"), say("alone"), sequence("c", 2))
    await say("end")


@hf.workflow
async def by_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(sequence("a", 3))
        await say("between")
        group.create_task(nest("b"))
        group.create_task(say("alone"))
        group.create_task(sequence("c", 2))
    await say("end")


@hf.workflow
async def by_anyio() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(sequence, "a", 3)
        await say("between")
        group.start_soon(nest, "b")
        group.start_soon(sequence, "c", 2)
    await say("end")


@hf.workflow
async def by_wait_for() -> None:
    await asyncio.wait_for(sequence("a", 2), 60)
    await asyncio.wait_for(say("b"), 60)
    await asyncio.gather(sequence("c", 1), sequence("d", 1))
    async with asyncio.timeout(60):
        await say("end")


@hf.step
async def busy(label: str) -> str:
    await asyncio.gather(*(asyncio.sleep(0) for _ in range(3)))
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))
    return label


@hf.workflow
async def by_busy_steps() -> None:
    await busy("a")
    await asyncio.gather(sequence("b", 1), busy("c"), sequence("d", 1))


BRANCHES = {"1.1": "a0", "1.2": "a1", "1.3": "a2"}
NESTED = {
    "2.1": "b before", "2.1.1": "b a0", "2.1.2": "b a1", "2.2.1": "b b0", "2.2": "b after",
}  # fmt: skip
IDS = {
    # A durable call itself takes its id where it is made, not in the task that gather makes for it.
    by_gather: {**BRANCHES, **NESTED, "1": "alone", "4.1": "c0", "4.2": "c1", "2": "end"},
    by_task_group: {**BRANCHES, **NESTED, "1": "between", "2": "alone", "4.1": "c0", "4.2": "c1", "3": "end"},
    by_anyio: {**BRANCHES, **NESTED, "1": "between", "3.1": "c0", "3.2": "c1", "2": "end"},
    by_wait_for: {"1": "a0", "2": "a1", "3": "b", "1.1": "c0", "2.1": "d0", "4": "end"},
    by_busy_steps: {"1": "a", "1.1": "b0", "2": "c", "3.1": "d0"},
}


@pytest.mark.parametrize("new_loop", LOOPS)
def test_w4_ids_are_the_same_over_fifty_runs(dsn: str, new_loop: NewLoop) -> None:
    async def run() -> None:
        async with hf.Runtime(dsn, workflows=IDS, settings=quick()) as rt:
            await asyncio.gather(*(rt.run(wf()) for wf in IDS for _ in range(RUNS)))
        database = await connect(dsn)
        query = (
            "select w.name, w.id, s.step_id, s.output from holdfast.workflows w join holdfast.step_list s "
        )
        rows = await database.fetch(f"{query} on s.workflow_id = w.id")
        await database.close()
        found: dict[str, dict[str, str]] = {}
        names: dict[str, str] = {}
        for name, workflow_id, step_id, output in rows:
            names[workflow_id] = name
            found.setdefault(workflow_id, {})[step_id] = output.strip('"')
        assert len(found) == len(IDS) * RUNS
        expected = {wf.name: ids for wf, ids in IDS.items()}
        for workflow_id, ids in found.items():
            assert ids == expected[names[workflow_id]], names[workflow_id]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


async def test_w4_another_task_factory_is_kept_and_called(dsn: str) -> None:
    made: list[asyncio.Task[Any]] = []

    def factory(
        loop: asyncio.AbstractEventLoop,
        coro: Coroutine[Any, Any, Any],
        **options: Any,  # noqa: ANN401
    ) -> asyncio.Task[Any]:
        made.append(asyncio.Task(coro, loop=loop, **options))
        return made[-1]

    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(factory)  # type: ignore[arg-type]
    try:
        async with hf.Runtime(dsn, workflows=[by_gather], settings=quick()) as rt:
            made.clear()
            handle = await rt.start(by_gather(), id="one")
            await handle.result(PATIENCE)
            assert len(made) >= 5
            steps = {found.step_id for found in await rt.steps("one")}
            assert steps == set(IDS[by_gather])
        assert loop.get_task_factory() is factory
    finally:
        loop.set_task_factory(before)


@pytest.mark.parametrize("new_loop", LOOPS)
def test_w4_task_groups_of_anyio_outside_workflows_are_left_in_peace(dsn: str, new_loop: NewLoop) -> None:
    async def run() -> None:
        ran: list[int] = []

        async def scoped(number: int) -> None:
            with anyio.move_on_after(60):
                await asyncio.sleep(0)
            ran.append(number)

        async with hf.Runtime(dsn, workflows=[by_gather], settings=quick()):
            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(scoped, number)
            assert sorted(ran) == [0, 1, 2]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


@hf.workflow
async def halves() -> list[str]:
    said: list[str] = []

    async def branch(label: str) -> None:
        for number in range(3):
            said.append(await say(f"{label}{number}"))
            said.append(str(await hf.recv(label)))

    await asyncio.gather(branch("a"), branch("b"), branch("c"))
    return said


@pytest.mark.parametrize("new_loop", LOOPS)
def test_w4_branches_go_on_under_the_same_ids_after_leaving_anywhere(dsn: str, new_loop: NewLoop) -> None:
    ids = [str(number) for number in range(10)]
    bodies.clear()

    async def serve(*rounds: int, finish: bool) -> None:
        async with hf.Runtime(dsn, workflows=[halves], settings=quick()) as rt:
            for workflow_id in ids:
                await rt.start(halves(), id=workflow_id)
                for number in rounds:
                    for topic in "abc":
                        await rt.send(workflow_id, f"{topic}{number}", topic)
            if finish:
                results = await asyncio.gather(*(rt.handle(halves, one).result(PATIENCE) for one in ids))
                for result in results:
                    assert Counter(result) == Counter([f"{t}{n}" for t in "abc" for n in range(3)] * 2)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        # Leaves at once, wherever the workflows are.
        runner.run(serve(0, finish=False))
        runner.run(serve(1, finish=False))
        runner.run(serve(2, finish=True))
    assert len(bodies) == 9 * len(ids)
    assert max(bodies.values()) <= 3


class Boom(Exception):
    pass


async def test_w4a_a_failing_sibling_cancels_the_others_at_the_same_place(
    processes: Processes, waits: Waits
) -> None:
    seen: dict[str, list[list[str]]] = {}

    @hf.workflow
    async def race() -> list[str]:
        done: list[str] = []

        async def run(label: str, length: int) -> None:
            for number in range(length):
                said = await say(f"{label}{number}")
                done.append(said)

        async def break_off() -> None:
            await say("x")
            await say("y")
            raise Boom

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(run("a", 30))
                group.create_task(run("b", 30))
                group.create_task(break_off())
        except* Boom:
            pass
        seen.setdefault(hf.current().workflow_id, []).append(list(done))
        await say("after")
        await hf.recv("go on")
        return done

    await _replay_twice(processes, waits, race, seen)


async def test_w4a_m8_a_message_taken_by_a_recv_that_its_sibling_cancels_stays_in_the_mailbox(
    processes: Processes, waits: Waits
) -> None:
    """Both recvs are served in one commit; what the first sets off cancels the other before it goes on."""
    seen: dict[str, list[list[str]]] = {}

    @hf.workflow
    async def race() -> list[str]:
        said: list[str] = []

        async def fail() -> None:
            await hf.recv("a")
            raise Boom

        async def take() -> None:
            said.append(f"taken {await hf.recv('b')}")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                group.create_task(take())
        except* Boom:
            said.append("failed")
        said.append(str(await hf.recv("b", timeout=0, default="lost")))
        seen.setdefault(hf.current().workflow_id, []).append(list(said))
        await hf.recv("go on")
        return said

    rt = await processes.runtime(race, settings=quick())
    await rt.start(race(), id="0")
    await waits.on("message", "0", "a")
    await waits.on("message", "0", "b")
    database = await connect(processes.dsn)
    await database.execute(
        "insert into holdfast.messages (workflow_id, topic, payload, created_at) "
        "values ('0', 'a', '1', now()), ('0', 'b', '2', now())"
    )
    await database.close()
    rt.engine.waiters.wake_all()
    await waits.on("message", "0", "go on")
    await processes.leave(rt)
    assert seen["0"] == [["failed", "2"]]
    seen.clear()
    await _replay_twice(processes, waits, race, seen, runs=1)
    assert seen["0"] == [["failed", "2"]] * 3


async def test_w4a_as_completed_repeats_its_order(processes: Processes, waits: Waits) -> None:
    seen: dict[str, list[list[str]]] = {}

    @hf.workflow
    async def race() -> list[str]:
        order: list[str] = []
        for first in asyncio.as_completed([say(str(number)) for number in range(8)]):
            order.append(await first)
            if len(order) % 3 == 0:
                order.append(await say(f"after {order[-1]}"))
        seen.setdefault(hf.current().workflow_id, []).append(list(order))
        await hf.recv("go on")
        return order

    await _replay_twice(processes, waits, race, seen)


async def test_w4a_the_first_of_several_tasks_repeats(processes: Processes, waits: Waits) -> None:
    seen: dict[str, list[list[str]]] = {}

    @hf.workflow
    async def race() -> list[str]:
        async def run(label: str) -> str:
            await say(f"{label} once")
            return await say(f"{label} twice")

        tasks = [asyncio.create_task(run(label)) for label in "abcde"]
        done, late = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        winners = sorted(task.result() for task in done)
        said = [*winners, await say(f"won: {winners}")]
        seen.setdefault(hf.current().workflow_id, []).append(said)
        await hf.recv("go on")
        return said

    await _replay_twice(processes, waits, race, seen)


async def _replay_twice(
    processes: Processes,
    waits: Waits,
    race: hf.Workflow[[], list[str]],
    seen: dict[str, list[list[str]]],
    runs: int = 15,
) -> None:
    """Three lives: what each workflow saw in its first, it sees in the others; and no step runs again."""
    bodies.clear()
    ids = [str(number) for number in range(runs)]
    for life in range(3):
        rt = await processes.runtime(race, settings=quick())
        waits.forget()
        for workflow_id in ids:
            await rt.start(race(), id=workflow_id)
        for workflow_id in ids:
            await waits.on("message", workflow_id, "go on")
        if life == 2:
            for workflow_id in ids:
                await rt.send(workflow_id, None, "go on")
                assert await rt.handle(race, workflow_id).result(PATIENCE) == seen[workflow_id][0]
        await processes.leave(rt)
    for workflow_id in ids:
        first, *others = seen[workflow_id]
        assert others == [first, first], workflow_id
    completed = set()
    database = await connect(processes.dsn)
    for workflow_id in ids:
        completed |= {(workflow_id, step_id) for step_id, _, _ in await journal(database, workflow_id)}
    await database.close()
    for call, times in bodies.items():
        assert times == 1 or call not in completed, call
