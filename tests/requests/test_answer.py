"""Answering: once, from workflow or step, whatever is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, rows, within

NUMBERS = hf.Topic[int, str]("number")
ANYTHING = hf.Topic[Any]("number")
GO = hf.Topic[None]("go")


async def first_of(topic: hf.Topic[Any, Any]) -> hf.Request[Any, Any]:
    return await anext(aiter(topic.requests()))


async def stored(database: Connection) -> list[bytes]:
    return [row[0] for row in await database.fetch("select payload from holdfast.events order by created_at")]


@hf.workflow
async def answers_twice() -> list[str]:
    request = await first_of(NUMBERS)
    await request.reply("one")
    found = []
    for again in (request.reply("two"), request.reject("three")):
        try:
            await again
        except RuntimeError as error:
            found.append(str(error))
    await GO.recv()
    return found


async def test_a_second_answer_is_refused_and_not_written(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(answers_twice)
    await first.start(answers_twice(), id="w")
    assert await first.ask("w", NUMBERS, 1) == "one"
    await waits.on("message", "w", "go")
    await processes.leave(first)
    before = await rows(database, "steps", "events")
    second = await processes.runtime(answers_twice)
    await second.send("w", None, GO)
    assert await second.handle("w").result() == ["this request has been answered already"] * 2
    assert (await rows(database, "events"))["events"] == before["events"]
    assert len(await stored(database)) == 1


@hf.workflow
async def answers_at_once() -> int:
    request = await first_of(NUMBERS)
    found = await asyncio.gather(
        *(request.reply(str(n)) for n in range(5)), request.reject("no"), return_exceptions=True
    )
    await GO.recv()
    return sum(isinstance(each, RuntimeError) for each in found)


async def test_of_answers_side_by_side_the_first_counts_on_a_replay_too(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(answers_at_once)
    await first.start(answers_at_once(), id="w")
    assert await first.ask("w", NUMBERS, 1) == "0"
    await waits.on("message", "w", "go")
    await processes.leave(first)
    second = await processes.runtime(answers_at_once)
    await second.send("w", None, GO)
    assert await second.handle("w").result() == 5
    assert len(await stored(database)) == 1


@hf.workflow
async def tries_what_cannot_be_stored() -> str:
    request = await first_of(ANYTHING)
    try:
        await request.reply(object())
    except hf.PayloadNotSerializable:
        await request.reply("better")
    return "done"


async def test_an_answer_that_cannot_be_stored_leaves_the_request_open(processes: Processes) -> None:
    rt = await processes.runtime(tries_what_cannot_be_stored)
    handle = await rt.start(tries_what_cannot_be_stored())
    assert await handle.ask(ANYTHING, 1) == "better"


@hf.workflow
async def rejects_nonsense() -> str:
    request = await first_of(ANYTHING)
    nonsense: Any = KeyboardInterrupt()
    try:
        request.reject(nonsense)
    except TypeError as error:
        await request.reply(str(error))
    return "done"


async def test_a_request_is_rejected_with_an_exception_or_a_text(processes: Processes) -> None:
    rt = await processes.runtime(rejects_nonsense)
    handle = await rt.start(rejects_nonsense())
    assert "takes an Exception or a text" in str(await handle.ask(ANYTHING, 1))


@hf.step(attempts=3, wait_initial=0.001, wait_jitter=0)
async def answer_in_a_step(request: hf.Request[int, str]) -> None:
    here = hf.current()
    await request.reply(f"try {here.attempt}")
    if here.attempt < 3:
        raise OSError("once more")


@hf.workflow
async def answers_in_a_step() -> None:
    await answer_in_a_step(await first_of(NUMBERS))


async def test_of_the_answers_of_a_step_the_first_counts(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(answers_in_a_step)
    handle = await rt.start(answers_in_a_step(), id="w")
    asking = asyncio.create_task(handle.ask(NUMBERS, 1))
    await handle.result()
    assert await asking == "try 1"
    assert len(await stored(database)) == 1
    assert [(step.kind) for step in await rt.steps("w")] == ["recv", "step"]


@hf.step
async def answer_many_times(request: hf.Request[int, str]) -> None:
    await asyncio.gather(*(request.reply(str(n)) for n in range(20)))


@hf.workflow
async def answers_in_one_batch() -> None:
    await answer_many_times(await first_of(NUMBERS))


async def test_of_the_answers_in_one_batch_the_first_counts(
    processes: Processes, database: Connection
) -> None:
    rt = await processes.runtime(answers_in_one_batch)
    handle = await rt.start(answers_in_one_batch())
    assert await handle.ask(NUMBERS, 1) == "0"
    await handle.result()
    assert len(await stored(database)) == 1


@hf.workflow
async def sums() -> list[int]:
    seen = []
    async for request in NUMBERS.requests():
        await request.reply(f"{request.value}, thank you")
        seen.append(request.value * (1 if request.asked else 100))
        if request.value == 0:
            break
    await GO.recv()
    return seen


async def test_a_message_that_was_sent_is_taken_too_and_its_answer_goes_nowhere(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    first = await processes.runtime(sums)
    handle = await first.start(sums(), id="w")
    await handle.send(NUMBERS, 1)
    assert await handle.ask(NUMBERS, 2) == "2, thank you"
    await handle.send(NUMBERS, 0)
    await waits.on("message", "w", "go")
    assert [step.kind for step in await first.steps("w")] == ["recv", "recv", "reply", "recv"]
    await processes.leave(first)
    second = await processes.runtime(sums)
    await second.send("w", None, GO)
    assert await second.handle("w").result() == [100, 2, 0]
    assert len(await stored(database)) == 1


async def test_what_does_not_decode_is_rejected_and_the_loop_goes_on(
    processes: Processes, database: Connection, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    first = await processes.runtime(sums)
    handle = await first.start(sums(), id="w")
    with pytest.raises(hf.PayloadDecodeError, match="Expected `int`"):
        await handle.ask("number", "no number")
    await handle.send("number", "a secret")
    assert await handle.ask(NUMBERS, 0) == "0, thank you"
    assert [record.message for record in caplog.records] == [
        "workflow 'w' skips a message of topic 'number' that does not fit its type"
    ]
    assert "secret" not in caplog.text
    await waits.on("message", "w", "go")
    await processes.leave(first)
    second = await processes.runtime(sums)
    await second.send("w", None, GO)
    assert await second.handle("w").result() == [0]


@hf.workflow
async def replies_oddly() -> None:
    await (await first_of(ANYTHING)).reply(17)


async def test_a_reply_that_does_not_fit_is_the_askers_error(processes: Processes) -> None:
    rt = await processes.runtime(replies_oddly)
    handle = await rt.start(replies_oddly())
    with pytest.raises(hf.PayloadDecodeError, match="Expected `str`"):
        await handle.ask(NUMBERS, 1)


@hf.workflow
async def just_receives() -> int:
    return await NUMBERS.recv()


async def test_a_recv_takes_a_request_as_any_message(processes: Processes) -> None:
    rt = await processes.runtime(just_receives)
    handle = await rt.start(just_receives())
    with pytest.raises(hf.WorkflowFinished):
        await within(5, handle.ask(NUMBERS, 3))
    assert await handle.result() == 3


@hf.workflow
async def serves_side_by_side() -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = []
        async for request in NUMBERS.requests():
            tasks.append(group.create_task(serve(request)))
            if len(tasks) == 3:
                break
    await GO.recv()
    return [task.result() for task in tasks]


async def serve(request: hf.Request[int, str]) -> str:
    word = str(await hf.recv(f"word {request.value}"))
    await request.reply(word)
    return word


async def test_w4_each_request_may_be_served_by_a_task_of_its_own(processes: Processes, waits: Waits) -> None:
    first = await processes.runtime(serves_side_by_side)
    handle = await first.start(serves_side_by_side(), id="w")
    client = await processes.client()
    asking = []
    for number in range(3):
        asking.append(asyncio.create_task(client.ask("w", NUMBERS, number)))
        await waits.on("message", "w", f"word {number}")
    for number in (2, 0, 1):
        await handle.send(f"word {number}", f"word {number}")
        assert await asking[number] == f"word {number}"
    await waits.on("message", "w", "go")
    await processes.leave(first)
    second = await processes.runtime(serves_side_by_side)
    await second.send("w", None, GO)
    assert await second.handle("w").result(20) == [f"word {number}" for number in range(3)]


_smuggled: list[hf.Request[int, str]] = []


@hf.workflow
async def smuggles() -> None:
    _smuggled.append(await first_of(NUMBERS))
    await GO.recv()


@hf.workflow
async def answers_for_another() -> str:
    try:
        _smuggled[-1].reply("mine")
    except hf.NotInWorkflow as error:
        return str(error)
    return "answered"


async def test_only_the_workflow_that_took_a_request_answers_it(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(smuggles, answers_for_another)
    await rt.start(smuggles(), id="w")
    await rt.send("w", 1, NUMBERS)
    await waits.on("message", "w", "go")
    assert "by no other" in await rt.run(answers_for_another())
    with pytest.raises(hf.NotInWorkflow):
        _smuggled[-1].reply("mine")
    assert "number" in repr(_smuggled[-1])
    assert "1" not in repr(_smuggled[-1])


async def test_k1_names_of_the_library_are_refused(processes: Processes) -> None:
    client = await processes.client()
    for make in (hf.Event[int], hf.Topic[int], hf.Stream[int]):
        with pytest.raises(hf.InvalidName, match="must not begin with '::'"):
            make("::reply:1")
    with pytest.raises(hf.InvalidName):
        await client.send("w", 1, key="::token:1")
    hf.Event[int]("a::b")


def test_topics_of_one_type_or_of_two() -> None:
    assert (NUMBERS.type, NUMBERS.argument(1)) == (int, str)
    one = hf.Topic[int]("x")
    assert (one.type, one.argument(1)) == (int, Any)
    bare: hf.Topic[Any] = hf.Topic("x")
    assert (bare.type, bare.argument(1)) == (Any, Any)
    assert hf.Topic[tuple[int, str]]("x").type == tuple[int, str]
    assert repr(NUMBERS) == "Topic[int, str]('number')"
    assert repr(one) == "Topic[int]('x')"
    assert repr(hf.Topic[Any, int]("x")) == "Topic[Any, int]('x')"
    assert isinstance(one.requests(), AsyncIterator)
