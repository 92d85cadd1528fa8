"""Every kind of value comes back from every place: on the first run in one process, on a replay in another,
and to who asks from outside [K2].
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import holdfast as hf
from tests.processes import Processes
from tests.runtime.witness import quick
from tests.values.kinds import GO, KINDS, WORKFLOWS, ready, same

ROOT = Path(__file__).parents[2]


async def test_k2_every_kind_of_value_comes_back_from_every_place(processes: Processes, dsn: str) -> None:
    client = await processes.client()
    cases = [(label, number) for label, (_, values) in KINDS.items() for number in range(len(values))]
    handles = dict(zip(cases, await asyncio.gather(*(begin(client, *case) for case in cases)), strict=True))
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.values.kinds", dsn, cwd=ROOT, start_new_session=True
    )
    try:
        async with asyncio.timeout(60):
            reached = await asyncio.gather(*map(goes_well, handles.values()))
        assert [wrong for wrong in reached if wrong] == []
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        await server.wait()
    await processes.runtime(*WORKFLOWS, settings=quick())
    async with asyncio.timeout(60):
        found = await asyncio.gather(*(end(client, *case, handle) for case, handle in handles.items()))
    assert [wrong for wrong in found if wrong] == []


async def begin(client: hf.Client, label: str, number: int) -> hf.Handle[Any]:
    """Starts a workflow whose code is elsewhere, with a value in every kind of parameter."""
    kind, values = KINDS[label]
    value = values[number]
    call = hf.WorkflowRef[..., kind](label)(  # type: ignore[valid-type]
        number, value, value, value, named=value, other=value
    )
    handle = await client.start(call, id=f"{label} {number}")
    await handle.send(hf.Topic[kind]("v"), value)  # type: ignore[valid-type]
    return handle


async def goes_well(handle: hf.Handle[Any]) -> str | None:
    """What has gone wrong before the workflow was ready, if anything."""
    try:
        await handle.get(ready)
    except hf.WorkflowFinished:
        return f"{handle.id}: {(await handle.status()).error}"
    return None


async def end(client: hf.Client, label: str, number: int, handle: hf.Handle[Any]) -> str | None:
    """What is wrong at the end, or seen from outside, if anything."""
    kind, values = KINDS[label]
    value = values[number]
    stream, event = hf.Stream[kind]("v"), hf.Event[kind]("v")  # type: ignore[valid-type]
    try:
        await handle.send(GO, None)
        same(await handle.result(), value, "result")
        same(await handle.get(event), value, "event from outside")
        same(await client.get_event(handle.id, "v", type=kind), value, "event by its type")
        for each in [found async for found in handle.watch(event)]:
            same(each, value, "watched event")
        read = await handle.read(stream).collect()
        assert len(read) == 3
        for each in read:
            same(each, value, "stream")
    except (ValueError, hf.HoldfastError) as error:
        return f"{handle.id}: {error} {error.__cause__ or ''}"
    return None


async def test_k2_types_of_a_function_s_own_scope(processes: Processes) -> None:
    """With `from __future__ import annotations` their names mean something only here."""
    from dataclasses import dataclass

    import pydantic

    @dataclass
    class Local:
        a: int
        inner: Inner | None = None

    class Inner(pydantic.BaseModel):
        b: list[int]

    Local.__annotations__["inner"] = Inner | None

    @hf.step
    async def step(value: Local) -> Local:
        return value

    @hf.workflow
    async def flow(value: Local, *more: Inner) -> list[Local]:
        return [await step(value), Local(2, more[0])]

    rt = await processes.runtime(flow)
    inner = Inner(b=[1])
    assert await rt.run(flow(Local(1, inner), inner)) == [Local(1, inner), Local(2, inner)]
