"""How a workflow ends: one guarded record, adopted by whoever comes second [W6, W7]."""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes
from tests.runtime.witness import PATIENCE, fence, quick, until


class Refused(Exception):
    pass


@hf.workflow
async def fail(kind: str) -> None:
    if kind == "registered":
        raise Refused("no", 17)
    if kind == "unknown":
        raise type("Homemade", (Exception,), {})("of its own")
    raise KeyError(kind)


@hf.workflow
async def give(kind: str) -> Any:  # noqa: ANN401 - what cannot be stored, of any type
    return {"object": object(), "nan": float("nan"), "large": "x" * 2_000_000}[kind]


async def test_w7_an_exception_is_recorded_and_rebuilt(processes: Processes, dsn: str) -> None:
    async with hf.Runtime(dsn, workflows=[fail], errors=[Refused], settings=quick()) as rt:
        with pytest.raises(hf.WorkflowFailed) as raised:
            await rt.run(fail("builtin"), id="builtin")
        assert isinstance(raised.value.__cause__, KeyError)
        with pytest.raises(hf.WorkflowFailed) as raised:
            await rt.run(fail("registered"), id="registered")
        assert isinstance(raised.value.__cause__, Refused)
        assert raised.value.__cause__.args == ("no", 17)
        with pytest.raises(hf.WorkflowFailed) as raised:
            await rt.run(fail("unknown"))
        assert isinstance(raised.value.__cause__, hf.RemoteError)
        found = await rt.status("builtin")
        assert found.status is hf.Status.ERROR
        assert found.finished_at is not None
    client = await processes.client()
    with pytest.raises(hf.WorkflowFailed) as raised:
        await client.handle("registered").result()
    assert isinstance(raised.value.__cause__, hf.RemoteError), "never by importing a name found in data"


@pytest.mark.parametrize("kind", ["object", "nan", "large"])
async def test_w6_a_result_that_cannot_be_stored_is_an_error_of_the_workflow(
    processes: Processes, kind: str
) -> None:
    rt = await processes.runtime(give, settings=quick())
    handle = await rt.start(give(kind))
    with pytest.raises(hf.WorkflowFailed) as raised:
        await handle.result(PATIENCE)
    assert isinstance(
        raised.value.__cause__, hf.PayloadTooLarge if kind == "large" else hf.PayloadNotSerializable
    )
    assert (await handle.status()).status is hf.Status.ERROR


async def test_w7_an_outcome_of_an_execution_that_was_lost_does_not_count(
    processes: Processes, database: Connection
) -> None:
    """The same execution ends twice: in a process that has been taken for dead, and in its successor."""
    ends: list[asyncio.Event] = []

    @hf.workflow
    async def once() -> int:
        ends.append(asyncio.Event())
        number = len(ends)
        await ends[-1].wait()
        return number

    # It does not hear of it before it tries to write.
    rt = await processes.runtime(once, settings=quick(heartbeat=4))
    handle = await rt.start(once(), id="one")
    await fence(database, rt)
    second = await processes.runtime(once, settings=quick())
    await until(lambda: _number(ends, 2), "taken over")
    ends[1].set()
    assert await second.handle(once, "one").result(PATIENCE) == 2
    ends[0].set()
    await until(lambda: _number(rt.executor.runs, 0), "stopped")
    assert await handle.result(PATIENCE) == 2
    assert len(ends) == 2


async def _number(things: Sized, number: int) -> bool:
    return len(things) == number


async def test_w7_an_outcome_is_not_overwritten(processes: Processes, database: Connection, dsn: str) -> None:
    @hf.workflow(name="same")
    async def first() -> str:
        return "first"

    @hf.workflow(name="same")
    async def second() -> str:
        return "second"

    one = await processes.runtime(first, settings=quick())
    assert await one.run(first(), id="one") == "first"
    await processes.leave(one)
    two = await processes.runtime(second, settings=quick())
    assert await two.run(second(), id="one") == "first"
    assert await database.fetchval("select claims from holdfast.workflows") == 1
