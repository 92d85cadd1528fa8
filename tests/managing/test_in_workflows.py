"""What workflow code does to other workflows by their handles is recorded: a replay does nothing again."""

from __future__ import annotations

from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, within
from tests.runtime.witness import PATIENCE, journal

GO = hf.Topic[str]("go")
CLIENTS: list[hf.Client] = []


def handle_of(workflow_id: str) -> hf.Handle[Any]:
    """A handle as the workflows below have it: of whatever client there is."""
    return CLIENTS[0].handle(workflow_id)


@hf.step
async def do(label: str) -> str:
    return label


@hf.workflow
async def worker() -> str:
    return await do("before") + str(await hf.recv("work"))


@hf.workflow
async def manager() -> list[Any]:
    """Does everything to a child that there is to do, and waits in between."""
    child = await hf.start(worker())
    said: list[Any] = [(await child.status()).status, await GO.recv(), await child.cancel()]
    try:
        await child.result()
    except hf.WorkflowCancelled:
        said.append((await child.status()).status)
    said += [await child.cancel(), await child.resume(), await child.resume()]
    forked = await child.fork(from_step="1")
    named = await child.fork(from_step="1", id="named")
    await forked.send("work", "!")
    said += [forked.id, named.id, await forked.result()]
    for failing in (handle_of("nobody").cancel(), child.fork(from_step="99"), forked.resume()):
        try:
            await failing
        except (hf.WorkflowNotFound, hf.WorkflowConflict, LookupError) as error:
            said.append(type(error).__name__)
    return [*said, await GO.recv()]


async def test_w3_what_is_done_to_others_is_recorded_and_not_done_again(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(manager, worker)
    CLIENTS[:] = [rt]
    handle = await rt.start(manager(), id="m")
    await waits.on("message", "m", "go")
    await waits.on("message", "m/1", "work")
    await handle.send(GO, "on")
    await waits.on("message", "m", "go", times=2)
    before = await journal(database, "m")
    claims = (await rt.status("m/1")).attempts
    await processes.leave(rt)
    second = await processes.runtime(manager, worker)
    CLIENTS[:] = [second]
    await second.send("m", "end", GO)
    fork = "m/10"
    assert await within(10, second.handle("m").result()) == [
        *["PENDING", "on", True, "CANCELLED", False, True, False],
        *[fork, "named", "before!"],
        *["WorkflowNotFound", "LookupError", "WorkflowConflict"],
        "end",
    ]
    assert (await journal(database, "m"))[: len(before)] == before
    kinds = [kind for _, kind, _ in before]
    assert [kinds.count(kind) for kind in ("cancel", "resume", "fork", "status")] == [3, 3, 3, 2]
    status = await second.status("m/1")
    assert status.status is hf.Status.PENDING, "not cancelled by the replay"
    assert status.attempts == claims + 1
    assert [found.id for found in await second.list(name="worker")] == ["named", fork, "m/1"]


@hf.step
async def tells(workflow_id: str) -> str:
    """For a step another database is the outside world."""
    other = handle_of(workflow_id)
    await other.send("work", "there")
    return str(await other.result())


@hf.workflow
async def abroad() -> list[str]:
    said = [await tells("elsewhere")]
    for talk in (
        lambda: handle_of("elsewhere").send("work", "here"),
        lambda: handle_of("elsewhere").cancel(),
        lambda: handle_of("elsewhere").result(),
        lambda: handle_of("elsewhere").read("log"),
    ):
        try:
            talk()
        except hf.NotInWorkflow as error:
            said.append("refused" if "use it in a step" in str(error) else str(error))
    return said


async def test_a_handle_of_another_schema_leads_there_from_a_step_and_nowhere_from_workflow_code(
    processes: Processes, dsn: str
) -> None:
    rt = await processes.runtime(abroad, worker)
    async with hf.Runtime(dsn, schema="elsewhere", workflows=[worker]) as other:
        CLIENTS[:] = [other]
        await other.start(worker(), id="elsewhere")
        await rt.start(worker(), id="elsewhere")
        assert await rt.run(abroad()) == ["beforethere", *["refused"] * 4]
    assert (await rt.status("elsewhere")).status is hf.Status.PENDING
    with pytest.raises(hf.WaitTimeout):
        await rt.handle("elsewhere").result(0)


async def test_k1_a_step_id_that_cannot_be_one_is_refused_before_anything_is_asked(
    processes: Processes, database: Connection
) -> None:
    @hf.workflow
    async def forks() -> str:
        try:
            await handle_of("somebody").fork(from_step="")
        except hf.InvalidName:
            return "refused"
        return ""

    rt = await processes.runtime(forks)
    CLIENTS[:] = [rt]
    assert await within(PATIENCE, rt.run(forks())) == "refused"
    assert await database.fetchval("select count(*) from holdfast.steps") == 0
