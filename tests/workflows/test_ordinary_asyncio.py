"""asyncio's own combinators around durable calls: a replay from any point sees what was seen [W4, W4a].

Every workflow here keeps a log of what it has seen, and gives the whole log to every step that it calls. The
step gives it back. In a replay a step's result is what the journal has: the log of the earlier life. So
wherever a replay has seen something else, or has come to a call on another way, the two differ. The journals
are cut after each of their records in turn, from the last to none, and the workflows recovered from what is
left.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable, Callable

import anyio
import pytest

import holdfast as hf
from holdfast import _observe
from tests.processes import Processes, Waits, connect
from tests.runtime.witness import quick
from tests.workflows.test_determinism import LOOPS, NewLoop

INSTANCES = 3
"""Workflows of each kind, for chance to show itself."""

wrong: list[str] = []


def chance() -> float:
    """A time in which something else may or may not happen."""
    return random.choice([0.0005, 0.001, 0.002, 0.004, 0.008])


@hf.step
async def echo(log: list[str]) -> list[str]:
    for _ in range(random.randrange(3)):
        await asyncio.sleep(random.choice([0, 0, chance()]))
    return log


class Log(list[str]):
    """What one life of a workflow has seen."""

    async def tell(self, label: str) -> str:
        """Notes something, in a durable call that knows everything noted before."""
        given = [*self, label]
        got = await echo(given)
        if got != given:
            wrong.append(f"{hf.current().workflow_name}: {got} became {given}")
        self.append(label)
        return label

    async def tell_many(self, label: str, number: int) -> None:
        for count in range(number):
            await self.tell(f"{label}{count}")


Program = Callable[[Log], Awaitable[None]]
programs: dict[str, Program] = {}


def program(fn: Program) -> Program:
    programs[fn.__name__] = fn
    return fn


@hf.workflow
async def play(name: str) -> None:
    log = Log()
    await programs[name](log)
    await log.tell("end")
    await hf.recv("go on")


# asyncio.wait


@program
async def wait_first_completed(log: Log) -> None:
    pending = {asyncio.create_task(log.tell_many(label, 2), name=label) for label in "abcdef"}
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            log.append(f"done {task.get_name()}")
        await log.tell("between")


@program
async def wait_all_completed(log: Log) -> None:
    tasks = {asyncio.create_task(log.tell(label), name=label) for label in "abcdefgh"}
    done, _ = await asyncio.wait(tasks)
    for task in done:
        await log.tell(f"done {task.get_name()}")


@program
async def wait_first_exception(log: Log) -> None:
    async def fail(label: str) -> None:
        await log.tell(label)
        raise LookupError(label)

    tasks = [asyncio.create_task(log.tell_many(label, 3), name=label) for label in "abc"]
    tasks += [asyncio.create_task(fail(label), name=label) for label in "xy"]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    log.extend(f"done {task.get_name()}" for task in done)
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@program
async def wait_with_a_timeout(log: Log) -> None:
    pending = {asyncio.create_task(log.tell_many(label, 2), name=label) for label in "abcd"}
    for _ in range(3):
        if pending:
            done, pending = await asyncio.wait(pending, timeout=chance())
            log.extend(f"done {task.get_name()}" for task in done)
            log.append(f"{len(pending)} pending")
        await log.tell("between")
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)


@program
async def wait_for_plain_futures(log: Log) -> None:
    futures = [asyncio.get_running_loop().create_future() for _ in range(3)]

    async def setter(number: int) -> None:
        await log.tell(f"set {number}")
        futures[number].set_result(number)
        await log.tell(f"after {number}")

    tasks = [asyncio.create_task(setter(number)) for number in range(3)]
    log.append(f"{await asyncio.gather(asyncio.shield(futures[0]), futures[1])}")
    await asyncio.wait([futures[2]])
    log.append("all set")
    await asyncio.gather(*tasks)


# Timeouts


@program
async def wait_for_around_a_call(log: Log) -> None:
    for number in range(4):
        try:
            given = [*log, "waited for"]
            got = await asyncio.wait_for(echo(given), chance())
            if got != given:
                wrong.append(f"wait_for: {got} became {given}")
            log.append(f"in time {number}")
        except TimeoutError:
            log.append(f"too late {number}")
        await log.tell("after")


@program
async def wait_for_around_a_sequence(log: Log) -> None:
    for number in range(2):
        try:
            await asyncio.wait_for(log.tell_many(f"{number}.", 5), chance())
        except TimeoutError:
            log.append("too late")
        await log.tell("after")


@program
async def timeout_around_a_sequence(log: Log) -> None:
    try:
        async with asyncio.timeout(chance()) as block:
            await log.tell_many("a", 3)
            block.reschedule(asyncio.get_running_loop().time() + chance())
            await log.tell_many("b", 5)
    except TimeoutError:
        log.append("too late")
    await log.tell_many("c", 3)


@program
async def timeout_at_in_branches(log: Log) -> None:
    async def branch(label: str) -> None:
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + chance()):
                await log.tell_many(label, 4)
        except TimeoutError:
            log.append(f"{label} too late")
            await log.tell(f"{label} after")

    await asyncio.gather(*(branch(label) for label in "abc"))


@program
async def timeouts_inside_timeouts(log: Log) -> None:
    try:
        async with asyncio.timeout(0.006):
            for number in range(6):
                try:
                    async with asyncio.timeout(chance()):
                        await log.tell_many(f"{number}.", 2)
                except TimeoutError:
                    log.append("inner")
    except TimeoutError:
        log.append("outer")


@program
async def anyio_scopes(log: Log) -> None:
    with anyio.move_on_after(chance()) as scope:
        await log.tell_many("a", 4)
    log.append(f"moved on: {scope.cancelled_caught}")
    await log.tell("between")
    try:
        with anyio.fail_after(chance()):
            await log.tell_many("b", 4)
    except TimeoutError:
        log.append("failed")
    await log.tell("after")


@program
async def anyio_task_group(log: Log) -> None:
    async def branch(label: str) -> None:
        try:
            await log.tell_many(label, 3)
        finally:
            log.append(f"{label} ends")

    with anyio.move_on_after(chance()):
        async with anyio.create_task_group() as group:
            for label in "abc":
                group.start_soon(branch, label)
    await log.tell("after")


# as_completed


@program
async def as_completed_over_tasks(log: Log) -> None:
    tasks = [asyncio.create_task(log.tell_many(label, 2), name=label) for label in "abcd"]
    try:
        for number, found in enumerate(asyncio.as_completed(tasks, timeout=0.006)):
            await found
            log.append(f"{number} done, {[task.get_name() for task in tasks if task.done()]}")
            await log.tell("between")
    except TimeoutError:
        log.append("too late")
    await log.tell("after")
    await asyncio.gather(*tasks)


@program
async def as_completed_over_calls(log: Log) -> None:
    for found in asyncio.as_completed([echo([label]) for label in "abcdef"]):
        log.append(str(await found))
        await log.tell("between")


if sys.version_info >= (3, 13):

    @program
    async def as_completed_async(log: Log) -> None:
        tasks = [asyncio.create_task(log.tell_many(label, 2), name=label) for label in "abcd"]
        async for task in asyncio.as_completed(tasks):
            log.append(f"done {task.get_name()}")
            await log.tell("between")


# Timers that race


@program
async def sleep_against_calls(log: Log) -> None:
    async def sleeper() -> None:
        for number in range(4):
            await asyncio.sleep(chance())
            log.append(f"slept {number}")

    await asyncio.gather(sleeper(), log.tell_many("a", 4), log.tell_many("b", 3))


@program
async def sleep_as_a_deadline(log: Log) -> None:
    for number in range(3):
        call = asyncio.create_task(log.tell_many(f"{number}.", 2))
        alarm = asyncio.create_task(asyncio.sleep(chance()))
        await asyncio.wait([call, alarm], return_when=asyncio.FIRST_COMPLETED)
        log.append("in time" if call.done() else "too late")
        for task in (call, alarm):
            task.cancel()
        await asyncio.gather(call, alarm, return_exceptions=True)
        await log.tell("after")


@program
async def timers_of_the_loop(log: Log) -> None:
    loop = asyncio.get_running_loop()
    rung = asyncio.Event()
    timers = [loop.call_later(chance(), log.append, f"timer {number}") for number in range(3)]
    loop.call_at(loop.time() + chance(), rung.set)
    await log.tell_many("a", 2)
    timers[0].cancel()
    await rung.wait()
    await log.tell_many("b", 2)


@program
async def one_branch_that_sleeps(log: Log) -> None:
    for number in range(3):
        await log.tell(str(number))
        await asyncio.sleep(chance())


# Between branches


@program
async def branches_that_talk(log: Log) -> None:
    queue: asyncio.Queue[str] = asyncio.Queue(maxsize=2)
    ready = asyncio.Event()
    gate = asyncio.Semaphore(2)

    async def produce(label: str) -> None:
        for number in range(3):
            async with gate:
                await log.tell(f"made {label}{number}")
                await queue.put(f"{label}{number}")
        ready.set()

    async def consume() -> None:
        for _ in range(6):
            item = await queue.get()
            log.append(f"got {item}")
            await log.tell(f"used {item}")

    async def listen() -> None:
        await ready.wait()
        log.append("ready")
        await log.tell("listened")

    await asyncio.gather(produce("a"), produce("b"), consume(), consume_nothing(log), listen())


async def consume_nothing(log: Log) -> None:
    """Keeps turning without waiting for anything; what completes meanwhile must not be seen in between."""
    for number in range(40):
        await asyncio.sleep(0)
        log.append(f"turn {number}")
    await log.tell("turned")


@program
async def a_failing_sibling(log: Log) -> None:
    async def branch(label: str) -> None:
        try:
            await log.tell_many(label, 6)
        except asyncio.CancelledError:
            log.append(f"{label} cancelled")
            raise
        finally:
            log.append(f"{label} ends")

    async def fail() -> None:
        await log.tell_many("x", 2)
        raise LookupError

    try:
        async with asyncio.TaskGroup() as group:
            for label in "abcd":
                group.create_task(branch(label))
            group.create_task(fail())
    except* LookupError:
        log.append("failed")


@program
async def a_sibling_that_ends_slowly(log: Log) -> None:
    @hf.step(name="echo")
    async def stubborn(given: list[str]) -> list[str]:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.004)
        return given

    async def branch() -> None:
        try:
            await stubborn(["never"])
        finally:
            log.append("stubborn ends")

    slow = asyncio.create_task(branch())
    others = asyncio.create_task(log.tell_many("a", 5))
    await log.tell("before")
    slow.cancel()
    log.append("cancelled")
    await asyncio.gather(others, log.tell_many("b", 3))
    await asyncio.gather(slow, return_exceptions=True)


@pytest.mark.parametrize("new_loop", LOOPS)
def test_w4a_a_replay_from_any_record_sees_what_was_seen(dsn: str, new_loop: NewLoop) -> None:
    wrong.clear()

    async def run() -> None:
        ids = {f"{name} {number}": name for name in programs for number in range(INSTANCES)}
        async with Processes(dsn) as processes:
            # From every second record on asyncio, from every third elsewhere: the loops differ in little.
            for life in range(0, 30, 2 if new_loop is asyncio.new_event_loop else 3):
                waits = Waits()
                unsubscribe = _observe.subscribe(waits)
                rt = await processes.runtime(play, settings=quick())
                for workflow_id, name in ids.items():
                    await rt.start(play(name), id=workflow_id)
                for workflow_id in ids:
                    try:
                        await waits.on("message", workflow_id, "go on")
                    except TimeoutError:
                        wrong.append(f"{workflow_id}: life {life} has not come to its end")
                await processes.leave(rt)
                unsubscribe()
                assert not wrong, "\n".join([f"life {life}", *wrong])
                await _cut(dsn, 1 + life)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


async def _cut(dsn: str, number: int) -> None:
    """Takes the last records out of every journal: so many of those that the first life made."""
    database = await connect(dsn)
    try:
        await database.execute(
            "create table if not exists public.lengths as select workflow_id, count(*) as length "
            "from holdfast.steps where finished_at is not null group by workflow_id"
        )
        await database.execute(
            "with ranked as (select s.workflow_id, s.step_id, l.length, row_number() over "
            "(partition by s.workflow_id order by s.seq) as rank "
            "from holdfast.steps s join public.lengths l using (workflow_id)) "
            "delete from holdfast.steps s using ranked r where s.workflow_id = r.workflow_id "
            "and s.step_id = r.step_id and r.rank > greatest(r.length - $1, 0)",
            number,
        )
    finally:
        await database.close()


async def test_w4_as_completed_refuses_calls_of_workflows(processes: Processes) -> None:
    @hf.workflow
    async def confused() -> str:
        try:
            for found in asyncio.as_completed([play("a"), play("b")]):
                await found
        except hf.NotInWorkflow as error:
            return str(error)
        return "taken"

    rt = await processes.runtime(confused, settings=quick())
    assert "holdfast.each" in await rt.run(confused())
