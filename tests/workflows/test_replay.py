"""Replay: no effects, nothing recorded runs again [W2, W3]; code that does not match is parked [W5]."""

from __future__ import annotations

import asyncio
import logging

import pytest

import holdfast as hf
from holdfast._run import turns
from holdfast._store import steps
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits
from tests.runtime.witness import PATIENCE, Signals, journal, quick, snapshot

ran: list[str] = []


@hf.step
async def do(label: str) -> str:
    ran.append(label)
    return label


@hf.step
async def do_else(label: str) -> str:
    ran.append(label)
    return label


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    ran.clear()


@hf.workflow
async def everything() -> list[object]:
    me = hf.current().workflow_id
    said: list[object] = [await do("a"), str(await hf.uuid()), await hf.random(), str(await hf.now())]
    await hf.set_event("event", 1)
    await hf.write_stream("stream", 1, 2)
    await hf.send(me, "to myself", "topic")
    said.append(await hf.recv("topic"))
    said.append(await hf.get_event(me, "event"))
    try:
        await hf.recv("topic", timeout=0)
    except TimeoutError:
        said.append("nothing")
    await hf.sleep(0)
    await hf.recv("go on")
    said.append(await do("b"))
    return said


async def test_w2_w3_replay_writes_nothing_and_gives_the_same(
    processes: Processes, database: Connection, waits: Waits, points: Points
) -> None:
    rt = await processes.runtime(everything, settings=quick())
    await rt.start(everything(), id="one")
    await waits.on("message", "one", "go on")
    before = await snapshot(database)
    await processes.leave(rt)
    await database.execute("update holdfast.events set payload = '2'")  # replay must not look
    waits.forget()
    points.passed.clear()
    rt = await processes.runtime(everything, settings=quick())
    await waits.on("message", "one", "go on")
    assert points.passed["writer.before_commit"] == 1, "replay made no commit; then recv looked, once"
    assert points.passed["step.before_body"] == points.passed["send.before_commit"] == 0
    assert ran == ["a"]
    await database.execute("update holdfast.events set payload = '1'")
    assert await snapshot(database) == before
    await rt.send("one", None, "go on")
    said = await rt.handle(everything, "one").result(PATIENCE)
    assert [said[0], *said[4:]] == ["a", "to myself", 1, "nothing", "b"]
    assert (
        said[1]
        == str(await database.fetchval("select output from holdfast.step_list where name = 'uuid'"))[1:-1]
    )
    assert ran == ["a", "b"]


async def test_w3_a_first_execution_reads_no_journal_and_recovery_all_of_them_in_one_query(
    processes: Processes, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    original = steps.list_journals

    async def count(connection: Connection, sql: object, ids: list[str]) -> object:
        reads.append(len(ids))
        return await original(connection, sql, ids)  # type: ignore[arg-type]

    monkeypatch.setattr(steps, "list_journals", count)
    rt = await processes.runtime(everything, settings=quick())
    for number in range(40):
        await rt.start(everything(), id=str(number))
    for number in range(40):
        await waits.on("message", str(number), "go on")
    assert reads == []
    await processes.leave(rt)
    waits.forget()
    await processes.runtime(everything, settings=quick())
    for number in range(40):
        await waits.on("message", str(number), "go on")
    assert reads == [40]


def versions() -> dict[str, hf.Workflow[[], str]]:
    """Versions of one workflow; all have recorded, or would, `do` and then wait for "go on"."""

    @hf.workflow(name="changing")
    async def original() -> str:
        said = await do("a")
        said += await do("b")
        await hf.recv("go on")
        return said

    @hf.workflow(name="changing")
    async def renamed() -> str:
        said = await do("a")
        said += await do_else("b")
        await hf.recv("go on")
        return said

    @hf.workflow(name="changing")
    async def other_kind() -> str:
        said = await do("a")
        await hf.set_event("b", 1)
        await hf.recv("go on")
        return said

    @hf.workflow(name="changing")
    async def shorter() -> str:
        return await do("a")

    @hf.workflow(name="changing")
    async def swallowing() -> str:
        said = await do("a")
        try:
            said += await do_else("b")
        except Exception:
            said += "swallowed"
        return said

    @hf.workflow(name="changing")
    async def failing() -> str:
        await do("a")
        raise ValueError("before the recorded call")

    @hf.workflow(name="changing")
    async def gathering() -> str:
        await do("a")
        await asyncio.gather(do_else("b"), return_exceptions=True)
        await hf.recv("go on")
        return "gathered"

    return {
        wf.fn.__name__: wf for wf in (original, renamed, other_kind, shorter, swallowing, failing, gathering)
    }


SIDES = {
    "renamed": ("step 'do'", "step 'do_else'"),
    "other_kind": ("step 'do'", "set_event 'b'"),
    "shorter": ("step 'do'", "the end of the workflow"),
    "swallowing": ("step 'do'", "step 'do_else'"),
    "failing": ("step 'do'", "the end of the workflow"),
    "gathering": ("step 'do'", "step 'do_else'"),
}


@pytest.mark.parametrize("version", SIDES)
async def test_w5_code_that_does_not_match_is_parked_and_goes_on_with_code_that_does(
    processes: Processes,
    database: Connection,
    waits: Waits,
    caplog: pytest.LogCaptureFixture,
    version: str,
) -> None:
    code = versions()
    rt = await processes.runtime(code["original"], settings=quick())
    await rt.start(code["original"](), id="one")
    await waits.on("message", "one", "go on")
    recorded = await journal(database, "one")
    await processes.leave(rt)

    caplog.clear()
    rt = await processes.runtime(code[version], settings=quick())
    parked = await _log(caplog, "parked")
    for side in SIDES[version]:
        assert side in parked
    assert "'one'" in parked
    assert (await rt.status("one")).status is hf.Status.PENDING
    with pytest.raises(hf.WaitTimeout):
        await rt.handle("one").result(timeout=0.05)
    assert await journal(database, "one") == recorded
    assert ran == ["a", "b"]
    await processes.leave(rt)

    rt = await processes.runtime(code["original"], settings=quick())
    await rt.send("one", None, "go on")
    assert await rt.handle(code["original"], "one").result(PATIENCE) == "ab"


async def test_w5_the_error_tells_both_sides_to_the_code(processes: Processes, waits: Waits) -> None:
    caught: list[hf.NondeterminismError] = []
    code = versions()

    @hf.workflow(name="changing")
    async def curious() -> None:
        await do("a")
        try:
            await do_else("b")
        except hf.NondeterminismError as error:
            caught.append(error)
            raise

    rt = await processes.runtime(code["original"], settings=quick())
    await rt.start(code["original"](), id="one")
    await waits.on("message", "one", "go on")
    await processes.leave(rt)
    rt = await processes.runtime(curious, settings=quick())
    await processes.leave(rt)
    if not caught:  # left before it had begun
        rt = await processes.runtime(curious, settings=quick())
        async with asyncio.timeout(PATIENCE):
            while not caught:
                await asyncio.sleep(0.005)
    (error,) = caught
    assert (error.workflow_id, error.step_id) == ("one", "2")
    assert "step 'do'" in error.recorded
    assert "step 'do_else'" in error.found


async def test_w4a_w5_a_replay_waits_for_a_recorded_call_that_is_no_longer_made_and_says_so(
    processes: Processes,
    waits: Waits,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The code waits for something else: nobody says so, but the recorded call is not made any more."""
    monkeypatch.setattr(turns, "MISSING_AFTER", 0.2)

    @hf.workflow(name="changing")
    async def waiting() -> str:
        said = await do("a")
        await asyncio.gather(hf.recv("go on"), do("c"))
        return said

    @hf.workflow(name="changing")
    async def before() -> str:
        said = await do("a")

        async def one() -> None:
            await do("in a branch")

        await asyncio.gather(one(), hf.recv("go on"))
        return said

    rt = await processes.runtime(before, settings=quick())
    await rt.start(before(), id="one")
    await waits.on("message", "one", "go on")
    await _ran(2)
    await processes.leave(rt)
    caplog.clear()
    rt = await processes.runtime(waiting, settings=quick())
    assert "step 'do'" in await _log(caplog, "a replay waits for a call")
    assert (await rt.status("one")).status is hf.Status.PENDING
    await processes.leave(rt)
    rt = await processes.runtime(before, settings=quick())
    await rt.send("one", None, "go on")
    assert await rt.handle(before, "one").result(PATIENCE) == "a"


async def _ran(times: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while len(ran) < times:
            await asyncio.sleep(0.005)


async def _log(caplog: pytest.LogCaptureFixture, word: str) -> str:
    """The first warning or error that says `word`."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for record in caplog.records:
                if record.levelno >= logging.WARNING and word in record.getMessage():
                    return record.getMessage()
            await asyncio.sleep(0.005)


async def test_w2_a_step_that_was_stopped_before_its_record_runs_again(
    processes: Processes, points: Points, signals: Signals
) -> None:
    @hf.workflow
    async def one_step() -> str:
        return await do("a")

    rt = await processes.runtime(one_step, settings=quick())
    killed = points.kill(rt, "step.before_commit", "before")
    await rt.start(one_step(), id="one")
    await killed.wait()
    await processes.leave(rt)
    assert ran == ["a"]
    rt = await processes.runtime(one_step, settings=quick())
    assert await rt.handle(one_step, "one").result(PATIENCE) == "a"
    assert ran == ["a", "a"]
    await signals.heard("workflow.finished", workflow_id="one")
