"""Steps: tries, outcomes, threads [W2, W6]."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits
from tests.runtime.witness import PATIENCE, quick

tries: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _nothing_was_tried() -> None:
    tries.clear()


class Flaky(Exception):
    pass


def fail_until(success: int, error: Exception) -> int:
    """What a body does that works from its n-th try on."""
    tries["body"] += 1
    if tries["body"] < success:
        raise error
    return tries["body"]


EAGER = {"wait_initial": 0.001, "wait_jitter": 0.0}


async def _twice(processes: Processes, waits: Waits, wf: hf.Workflow[[], Any]) -> tuple[list[Any], list[Any]]:
    """What a workflow returns that waits for "go on", in its first life and in a replay of it."""
    seen: list[list[Any]] = []

    @hf.workflow(name=wf.name)
    async def twice() -> list[Any]:
        found: list[Any] = await wf.fn()
        seen.append(found)
        await hf.recv("go on")
        return found

    for _ in range(2):
        rt = await processes.runtime(twice, settings=quick())
        waits.forget()
        await rt.start(twice(), id="one")
        await waits.on("message", "one", "go on")
        await processes.leave(rt)
    first, second = seen
    return first, second


async def test_w6_a_step_is_tried_again_until_it_works(processes: Processes, database: Connection) -> None:
    @hf.step(attempts=5, wait_initial=0.001, wait_jitter=0)
    async def flaky() -> tuple[int, int]:
        return fail_until(3, Flaky()), hf.current().attempt

    @hf.workflow
    async def work() -> list[int]:
        return list(await flaky())

    rt = await processes.runtime(work, settings=quick())
    assert await rt.run(work(), id="one") == [3, 3]
    assert await database.fetchval("select attempts from holdfast.steps") == 3


async def test_w6_what_runs_out_is_step_failed_recorded_and_raised_again(
    processes: Processes, waits: Waits
) -> None:
    @hf.step(attempts=3, wait_initial=0.001, wait_jitter=0)
    async def hopeless() -> None:
        fail_until(99, ValueError(f"try {tries['body'] + 1}"))

    @hf.workflow
    async def work() -> list[Any]:
        try:
            await hopeless()
        except hf.StepFailed as error:
            return [error.step, error.attempts, repr(error.__cause__), *map(repr, error.errors)]
        return []

    first, second = await _twice(processes, waits, work)
    errors = [f"ValueError('try {number}')" for number in (1, 2, 3)]
    assert first == ["hopeless", 3, errors[-1], *errors]
    assert second == first
    assert tries["body"] == 3


async def test_w6_a_step_with_one_try_raises_its_own_error(processes: Processes, waits: Waits) -> None:
    @hf.step
    async def once() -> None:
        fail_until(99, KeyError("k"))

    @hf.workflow
    async def work() -> list[Any]:
        try:
            await once()
        except KeyError as error:
            return [repr(error)]
        return []

    first, second = await _twice(processes, waits, work)
    assert first == second == ["KeyError('k')"]
    assert tries["body"] == 1


@pytest.mark.parametrize("declining", ["type", "types", "predicate"])
async def test_w6_an_error_that_retry_on_declines_is_raised_itself(
    processes: Processes, database: Connection, declining: str
) -> None:
    retry_on: Any = {
        "type": Flaky,
        "types": (Flaky, OSError),
        "predicate": lambda error: not isinstance(error, ValueError),
    }[declining]

    @hf.step(attempts=5, wait_initial=0.001, wait_jitter=0, retry_on=retry_on)
    async def mixed() -> None:
        fail_until(3, Flaky())
        raise ValueError("not again")

    @hf.workflow
    async def work() -> str:
        try:
            await mixed()
        except ValueError as error:
            return repr(error)
        return ""

    rt = await processes.runtime(work, settings=quick())
    assert await rt.run(work(), id="one") == "ValueError('not again')"
    assert tries["body"] == 3
    assert await database.fetchval("select attempts from holdfast.steps") == 3


async def test_w6_a_predicate_that_fails_declines(
    processes: Processes, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    @hf.step(attempts=5, retry_on=lambda error: bool(error.status))  # type: ignore[attr-defined]
    async def flawed() -> None:
        fail_until(99, ValueError("the body's own"))

    @hf.workflow
    async def work() -> list[Any]:
        try:
            await flawed()
        except ValueError as error:
            return [repr(error)]
        return []

    first, second = await _twice(processes, waits, work)
    assert first == second == ['ValueError("the body\'s own")']
    assert tries["body"] == 1
    assert "its retry_on has failed with AttributeError" in caplog.text


async def never(error: Exception) -> bool:
    return False


@pytest.mark.parametrize("retry_on", [{ValueError}, 3, None, int, (ValueError, 3), "ValueError", never])
def test_retry_on_that_cannot_be_one_is_refused(retry_on: Any) -> None:  # noqa: ANN401 - what is wrong
    with pytest.raises(hf.ConfigurationError, match="retry_on"):
        hf.step(attempts=2, retry_on=retry_on)


def test_retry_on_may_be_no_class_at_all() -> None:
    hf.step(attempts=2, retry_on=())


@pytest.mark.parametrize("kind", ["object", "nan", "large"])
async def test_w6_a_result_that_cannot_be_stored_fails_the_step_not_the_process(
    processes: Processes, waits: Waits, kind: str
) -> None:
    @hf.step(attempts=3, wait_initial=0.001, wait_jitter=0)
    async def unstorable() -> Any:  # noqa: ANN401 - what cannot be stored
        tries["body"] += 1
        return {"object": object(), "nan": float("nan"), "large": "x" * 2_000_000}[kind]

    @hf.workflow
    async def work() -> list[Any]:
        try:
            await unstorable()
        except hf.PayloadError as error:
            return [type(error).__name__]
        return []

    first, second = await _twice(processes, waits, work)
    assert first == second == ["PayloadTooLarge" if kind == "large" else "PayloadNotSerializable"]
    assert tries["body"] == 1, "trying again would not help"


@dataclass
class Order:
    number: int
    placed: datetime
    lines: tuple[str, ...]


async def test_w2_the_result_is_the_decoded_value_on_the_first_run_as_on_replay(
    processes: Processes, waits: Waits
) -> None:
    kept: list[Order] = []

    @hf.step
    async def place(number: int) -> Order:
        kept.append(Order(number, datetime.fromisoformat("2026-01-01T00:00:00+00:00"), ("a", "b")))
        return kept[-1]

    @hf.step
    async def untyped():  # type: ignore[no-untyped-def] # noqa: ANN202 - a step without annotations
        return (1, {"a": (2,)})

    got: list[Order] = []

    @hf.workflow
    async def work() -> list[Any]:
        got.append(await place(1))
        return [await untyped()]

    first, second = await _twice(processes, waits, work)
    assert first == second == [[1, {"a": [2]}]]
    assert got[0] == got[1] == kept[0]
    assert got[0] is not kept[0]
    assert len(kept) == 1


async def test_w6_a_timeout_counts_for_each_try(processes: Processes) -> None:
    @hf.step(attempts=2, timeout=0.02, wait_initial=0.001, wait_jitter=0)
    async def stuck() -> None:
        tries["body"] += 1
        await asyncio.Event().wait()

    @hf.step(timeout=0.02)
    async def stuck_once() -> None:
        tries["body"] += 1
        await asyncio.Event().wait()

    @hf.workflow
    async def work() -> list[str]:
        said = []
        try:
            await stuck()
        except hf.StepFailed as error:
            said.append(repr(error.__cause__))
        try:
            await stuck_once()
        except TimeoutError as error:
            said.append(type(error).__name__)
        return said

    rt = await processes.runtime(work, settings=quick())
    assert await rt.run(work()) == ["TimeoutError()", "TimeoutError"]
    assert tries["body"] == 3


async def test_w2_plain_functions_run_in_threads_beside_the_loop(processes: Processes) -> None:
    main = threading.get_ident()
    together = threading.Barrier(3, timeout=PATIENCE)

    @hf.step
    def think(number: int) -> list[Any]:
        together.wait()
        here = hf.current()
        return [number, threading.get_ident() != main, here.workflow_id, here.step_id]

    @hf.step(attempts=2, wait_initial=0.001, wait_jitter=0)
    def stumble() -> int:
        return fail_until(2, Flaky())

    @hf.workflow
    async def work() -> list[Any]:
        return [*await asyncio.gather(think(1), think(2), think(3)), await stumble()]

    rt = await processes.runtime(work, settings=quick())
    assert await rt.run(work(), id="one") == [
        [1, True, "one", "1"],
        [2, True, "one", "2"],
        [3, True, "one", "3"],
        2,
    ]


async def test_w2_the_wait_for_a_thread_can_be_cancelled(processes: Processes) -> None:
    entered, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    @hf.step
    def stuck() -> None:
        loop.call_soon_threadsafe(entered.set)
        leave.wait(PATIENCE)

    @hf.workflow
    async def work() -> None:
        await stuck()

    rt = await processes.runtime(work, settings=quick())
    handle = await rt.start(work())
    await entered.wait()
    await handle.cancel()
    try:
        with pytest.raises(hf.WorkflowCancelled):
            await handle.result(PATIENCE)
    finally:
        leave.set()


async def test_w2_outside_a_workflow_a_step_just_runs(processes: Processes) -> None:
    @hf.step(attempts=3)
    async def add(a: int, b: int) -> int:
        tries["body"] += 1
        return a + b

    @hf.step
    def subtract(a: int, b: int) -> int:
        return a - b

    @hf.step
    async def both(a: int, b: int) -> list[int]:
        return [await add(a, b), await subtract(a, b)]

    @hf.workflow
    async def work() -> list[int]:
        return await both(5, 3)

    assert await add(1, b=2) == 3
    assert await subtract(1, 2) == -1
    with pytest.raises(TypeError):
        add(1)  # type: ignore[call-arg]
    rt = await processes.runtime(work, settings=quick())
    assert await rt.run(work(), id="one") == [8, 2]
    assert [found.name for found in await rt.steps("one")] == ["both"], "steps inside a step are not recorded"


async def test_w2_what_a_step_may_not_do_is_said(processes: Processes) -> None:
    @hf.step
    async def meddle(what: str) -> str:
        calls: dict[str, Any] = {
            "recv": lambda: hf.recv(),
            "sleep": lambda: hf.sleep(0),
            "start": lambda: hf.start(work("x")),
            "uuid": lambda: hf.uuid(),
        }
        try:
            await calls[what]()
        except hf.NotInWorkflow as error:
            return str(error)
        return "allowed"

    @hf.workflow
    async def work(what: str) -> str:
        return await meddle(what)

    rt = await processes.runtime(work, settings=quick())
    for what in ("recv", "sleep", "start", "uuid"):
        assert "inside a step" in await rt.run(work(what))


async def test_w2_what_a_step_says_is_said_at_least_once_and_told_apart(processes: Processes) -> None:
    @hf.step(attempts=3, wait_initial=0.001, wait_jitter=0)
    async def speak() -> None:
        me = hf.current()
        await hf.write_stream("log", f"try {me.attempt}", "and")
        await hf.set_event("progress", me.attempt)
        await hf.send(me.workflow_id, me.attempt, "to me")
        if me.attempt < 3:
            raise Flaky
        await hf.close_stream("log")

    @hf.workflow
    async def work() -> list[int]:
        await speak()
        return [await hf.recv("to me", timeout=0) for _ in range(3)]

    rt = await processes.runtime(work, settings=quick())
    assert await rt.run(work(), id="one") == [1, 2, 3]
    items = [item async for item in rt.read_stream("one", "log").items()]
    assert [item.offset for item in items] == list(range(6))
    assert [(item.value, item.attempt) for item in items] == [
        ("try 1", 1), ("and", 1), ("try 2", 2), ("and", 2), ("try 3", 3), ("and", 3),
    ]  # fmt: skip
    assert await rt.get_events("one", history=True) == {"progress": [(1, 1), (2, 2), (3, 3)]}


async def test_w2_a_wait_that_is_dropped_neither_runs_nor_warns(processes: Processes) -> None:
    @hf.step
    async def ran(label: str) -> str:
        tries[label] += 1
        return label

    @hf.workflow
    async def work() -> str:
        ran("dropped")
        hf.recv("nothing")
        return await ran("kept")

    rt = await processes.runtime(work, settings=quick())
    assert await rt.run(work(), id="one") == "kept"
    assert tries == {"kept": 1}
    assert [found.step_id for found in await rt.steps("one")] == ["3"], "its place is taken all the same"
