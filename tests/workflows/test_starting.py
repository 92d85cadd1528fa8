"""Starting: one id, one execution [W1]; results, wherever they are awaited [W15]."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits
from tests.runtime.witness import PATIENCE, Signals, quick, state


@hf.workflow
async def echo(value: str) -> str:
    return value


@hf.workflow
async def other(value: str) -> str:
    return value


@hf.workflow
async def wait_for_word() -> str:
    return str(await hf.recv("word"))


async def test_w1_the_row_is_there_when_start_returns(processes: Processes, database: Connection) -> None:
    client = await processes.client()
    await client.start(echo("a"), id="from a client")
    assert await state(database, "from a client") == "ENQUEUED"
    rt = await processes.runtime(wait_for_word, settings=quick())
    await rt.start(wait_for_word(), id="from a runtime")
    assert await state(database, "from a runtime") == "PENDING"


async def test_w1_what_a_client_starts_a_runtime_takes(processes: Processes) -> None:
    client = await processes.client()
    before = await client.start(echo("before"))
    await processes.runtime(echo, settings=quick())
    after = await client.start(echo("after"))
    assert await before.result(PATIENCE) == "before"
    assert await after.result(PATIENCE) == "after"


async def test_w1_one_id_started_by_a_hundred_callers_at_once_runs_once(
    processes: Processes, database: Connection
) -> None:
    runs: list[int] = []

    @hf.step
    async def ran(number: int) -> int:
        runs.append(number)
        return number

    @hf.workflow
    async def count(number: int) -> int:
        return await ran(number)

    starters = [
        await processes.runtime(count, settings=quick()),
        await processes.runtime(count, settings=quick()),
        await processes.client(),
        await processes.client(),
    ]

    async def start(number: int) -> int:
        handle = await starters[number % 4].start(count(number), id="one")
        return await handle.result(PATIENCE)

    results = await asyncio.gather(*(start(number) for number in range(100)))
    assert len(runs) == 1
    assert set(results) == set(runs)
    assert await database.fetchval("select count(*) from holdfast.workflows") == 1
    assert await database.fetchval("select epoch from holdfast.workflows") == 1


async def test_w1_the_same_id_again_attaches_even_after_the_end(processes: Processes) -> None:
    rt = await processes.runtime(echo, settings=quick())
    assert await rt.run(echo("first"), id="one") == "first"
    assert await rt.run(echo("second"), id="one") == "first"
    with pytest.raises(hf.WorkflowConflict):
        await rt.start(echo("third"), id="one", on_existing="raise")


@pytest.mark.parametrize("by", ["runtime", "client"])
async def test_w1_an_id_of_another_workflow_is_a_conflict(processes: Processes, by: str) -> None:
    rt = await processes.runtime(echo, other, settings=quick())
    starter = rt if by == "runtime" else await processes.client()
    await rt.run(echo("a"), id="one")
    with pytest.raises(hf.WorkflowConflict, match=r"echo.*other") as raised:
        await starter.start(other("b"), id="one")
    assert raised.value.workflow_id == "one"


async def test_w1_what_cannot_be_stored_starts_nothing(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(echo, settings=quick())
    with pytest.raises(hf.PayloadNotSerializable):
        await rt.start(echo(object()))  # type: ignore[arg-type]
    with pytest.raises(hf.InvalidName):
        await rt.start(echo("a"), id="")
    assert await database.fetchval("select count(*) from holdfast.workflows") == 0


async def test_w15_a_result_is_told_in_another_process_without_polling(
    processes: Processes, waits: Waits, signals: Signals
) -> None:
    rt = await processes.runtime(wait_for_word, settings=quick())
    client = await processes.client()
    await rt.start(wait_for_word(), id="one")
    waiting = asyncio.create_task(client.handle(wait_for_word, "one").result(PATIENCE))
    await waits.on("end", "one")
    asked = client.statistics().lookups.queries
    heard = client.statistics().listener.last_heard
    while client.statistics().listener.last_heard == heard:  # its heart has beaten
        await asyncio.sleep(0.01)
    assert client.statistics().lookups.queries == asked
    await rt.send("one", "hello", "word")
    await signals.heard("workflow.finished", workflow_id="one")
    ended = time.monotonic()
    assert await waiting == "hello"
    assert time.monotonic() - ended < 5
    assert client.statistics().lookups.queries == asked + 1


async def test_w15_a_timeout_leaves_the_workflow_alone(processes: Processes) -> None:
    rt = await processes.runtime(wait_for_word, settings=quick())
    handle = await rt.start(wait_for_word(), id="one")
    with pytest.raises(hf.WaitTimeout):
        await handle.result(timeout=0.01)
    with pytest.raises(hf.WaitTimeout):
        await handle.result(timeout=0)
    await handle.send("word", "hello")
    assert await handle.result(PATIENCE) == "hello"
    assert await handle.result(timeout=0) == "hello"


async def test_w15_many_waiters_of_one_result_are_all_told(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(wait_for_word, settings=quick())
    client = await processes.client()
    await rt.start(wait_for_word(), id="one")
    handles = [process.handle(wait_for_word, "one") for process in (rt, client)]
    waiting = [asyncio.create_task(handle.result(PATIENCE)) for handle in handles for _ in range(50)]
    await waits.on("end", "one", times=100)
    waiting[0].cancel()
    await rt.send("one", "hello", "word")
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == ["hello"] * 99


async def test_w15_the_result_of_an_unknown_id_is_an_error(processes: Processes) -> None:
    client = await processes.client()
    with pytest.raises(hf.WorkflowNotFound):
        await client.handle("nobody").result(PATIENCE)


async def test_a_handle_of_a_workflow_wants_its_id_too(processes: Processes) -> None:
    client = await processes.client()
    handle: Callable[..., object] = client.handle
    for workflow in (echo, hf.WorkflowRef[[str], str]("echo")):
        with pytest.raises(TypeError, match=r"handle\(echo, id\)"):
            handle(workflow)
