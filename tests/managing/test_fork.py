"""Forking: a new workflow with what another had recorded before a step [W12]."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections import Counter
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.types import PayloadContext
from tests.processes import Processes, Waits
from tests.runtime.witness import PATIENCE, journal, quick, state, until

ran: Counter[str] = Counter()
log = hf.Stream[str]("log")
notes = hf.Stream[str]("notes")
stage = hf.Event[str]("stage")
inbox = hf.Topic[str]("inbox")


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    ran.clear()


@hf.step
async def do(label: str) -> str:
    ran[label] += 1
    await log.write(f"in {label}")
    await stage.set(f"in {label}")
    return label


@hf.workflow
async def story(name: str) -> list[str]:
    said = [await do(f"{name} one")]  # 1
    await log.write("between")  # 2
    await notes.write("x", "y")  # 3
    said.append(await inbox.recv())  # 4
    await stage.set("received")  # 5
    said.append(await do(f"{name} two"))  # 6
    await notes.close()  # 7
    said.append(await do(f"{name} three"))  # 8
    await log.close()  # 9
    return said


RESULT = ["ada one", "hello", "ada two", "ada three"]


async def told(rt: hf.Client, settings: dict[str, Any] | None = None) -> hf.Handle[list[str]]:
    """The story, told to its end."""
    handle = await rt.start(story("ada"), id="one", **(settings or {}))
    await handle.send(inbox, "hello")
    await handle.send(inbox, "unread")
    assert await handle.result(PATIENCE) == RESULT
    return handle


@pytest.mark.parametrize("by", ["handle", "runtime", "another process"])
async def test_w12_everything_before_a_step_comes_along_and_the_rest_is_done_again(
    processes: Processes, database: Connection, by: str
) -> None:
    rt = await processes.runtime(story)
    handle = await told(rt, {"attributes": {"k": 1}, "timeout": 600})
    forker: hf.Client = await processes.client() if by == "another process" else rt
    forked = (
        await handle.fork(from_step="6", id="two")
        if by == "handle"
        else await forker.fork("one", from_step="6", id="two")
    )
    assert forked.id == "two"
    assert await forked.result(PATIENCE) == RESULT
    assert ran == {"ada one": 1, "ada two": 2, "ada three": 2}
    assert await journal(database, "two") == await journal(database, "one")
    assert await forked.read(log).collect() == ["in ada one", "between", "in ada two", "in ada three"]
    assert await forked.read(notes).collect() == ["x", "y"]
    assert await rt.get_events("two", history=True) == {
        "stage": [(1, "in ada one"), (2, "received"), (3, "in ada two"), (4, "in ada three")]
    }
    assert await rt.messages("two") == []
    found = await rt.status("two")
    assert (found.name, found.attributes, found.parent) == ("story", {"k": 1}, None)
    assert await handle.result() == RESULT  # untouched
    assert len(await rt.messages("one")) == 2


@pytest.mark.parametrize(
    ("step", "logged", "noted", "stages", "closed"),
    [
        ("1", [], [], [], set()),
        ("2", ["in ada one"], [], ["in ada one"], set()),
        ("4", ["in ada one", "between"], ["x", "y"], ["in ada one"], set()),
        ("8", ["in ada one", "between", "in ada two"], ["x", "y"],
         ["in ada one", "received", "in ada two"], {"notes"}),
        ("9", ["in ada one", "between", "in ada two", "in ada three"], ["x", "y"],
         ["in ada one", "received", "in ada two", "in ada three"], {"notes"}),
    ],
)  # fmt: skip
async def test_w12_events_and_streams_are_those_of_that_step(
    processes: Processes, step: str, logged: list[str], noted: list[str], stages: list[str], closed: set[str]
) -> None:
    rt = await processes.runtime(story)
    await told(rt)
    await processes.leave(rt)
    client = await processes.client()
    await client.fork("one", from_step=step, id="two")
    rows = {info.name: info for info in await client.streams("two")}
    assert {name: info.length for name, info in rows.items() if info.length} == {
        name: len(values) for name, values in (("log", logged), ("notes", noted)) if values
    }
    assert {name for name, info in rows.items() if info.closed} == closed
    history = await client.get_events("two", history=True)
    assert [value for _, value in history.get("stage", [])] == stages
    assert [revision for revision, _ in history.get("stage", [])] == list(range(1, len(stages) + 1))


async def test_w12_a_stream_is_renumbered_without_holes(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def interleaved() -> None:
        async def slow() -> None:
            await slowly()

        async def fast() -> None:
            for number in range(3):
                await log.write(f"fast {number}")
                await inbox.recv(timeout=600)

        await asyncio.gather(slow(), fast())

    gate = asyncio.Event()

    @hf.step
    async def slowly() -> None:
        for number in range(3):
            await log.write(f"slow {number}")
        await gate.wait()

    rt = await processes.runtime(interleaved)
    handle = await rt.start(interleaved(), id="one")
    for _ in range(2):
        await handle.send(inbox, "on")
    await waits.on("message", "one", "inbox")
    while [info.length for info in await rt.streams("one")] != [6]:
        await asyncio.sleep(0)
    await until(lambda: _recorded(rt, "2.6"), "the last wait recorded")
    # The step in which the slow values were written is not recorded yet.
    await rt.fork("one", from_step="2.6", id="two")
    reader = rt.read_stream("two", log)
    assert [await anext(reader) for _ in range(3)] == ["fast 0", "fast 1", "fast 2"]
    assert reader.offset == 2
    gate.set()
    await rt.cancel("one")
    await rt.cancel("two")


async def _recorded(rt: hf.Client, step_id: str) -> bool:
    return step_id in {step.step_id for step in await rt.steps("one")}


async def test_w12_of_one_that_waits_everything_recorded_comes_along(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(story)
    handle = await rt.start(story("ada"), id="one")
    await waits.on("message", "one", "inbox")
    with pytest.raises(LookupError, match="'4'"):
        await rt.fork("one", from_step="4")  # it waits without a deadline, and nothing is written of it
    forked = await rt.fork("one", from_step="3", id="two")
    await waits.on("message", "two", "inbox")
    await forked.send(inbox, "hello")
    assert await forked.result(PATIENCE) == RESULT
    assert await state(database, "one") == "PENDING"
    await handle.send(inbox, "hello")
    assert await handle.result(PATIENCE) == RESULT
    assert ran["ada one"] == 1


async def test_w12_a_wait_that_is_recorded_is_a_place_to_fork_from(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def patient() -> str:
        await do("first")
        return await inbox.recv(timeout=600)

    rt = await processes.runtime(patient)
    await rt.start(patient(), id="one")
    await waits.on("message", "one", "inbox")
    forked = await rt.fork("one", from_step="2", id="two")
    await waits.on("message", "two", "inbox")
    await forked.send(inbox, "hello")
    assert await forked.result(PATIENCE) == "hello"
    assert ran["first"] == 1


async def test_w12_without_an_id_it_is_given_one_and_with_one_it_is_the_same(processes: Processes) -> None:
    rt = await processes.runtime(story)
    handle = await told(rt)
    forked = await handle.fork(from_step="6")
    assert await forked.result(PATIENCE) == RESULT
    assert forked.id not in ("", "one")
    again = [await rt.fork("one", from_step="6", id="two") for _ in range(3)]
    assert {await one.result(PATIENCE) == RESULT for one in again} == {True}
    assert ran["ada two"] == 3
    for other_step in ("7", "1"):
        with pytest.raises(hf.WorkflowConflict):
            await rt.fork("one", from_step=other_step, id="two")
    with pytest.raises(hf.WorkflowConflict):
        await rt.fork("one", from_step="6", id="one")


async def test_w12_what_is_unknown_is_named(processes: Processes) -> None:
    rt = await processes.runtime(story)
    await told(rt)
    with pytest.raises(hf.WorkflowNotFound, match="nobody"):
        await rt.fork("nobody", from_step="1")
    with pytest.raises(LookupError, match="'12'"):
        await rt.fork("one", from_step="12")
    assert [found.id for found in await rt.list()] == ["one"]


async def test_w12_many_at_once_of_one_id_are_one(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(story)
    client = await processes.client()
    await told(rt)
    forks = [side.fork("one", from_step="6", id="two") for side in (rt, client) for _ in range(10)]
    for made in await asyncio.gather(*forks):
        assert await made.result(PATIENCE) == RESULT
    assert ran["ada two"] == 2


async def test_w12_w10_a_cancelled_one_is_forked_without_its_cancellation(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    @hf.workflow
    async def careful() -> str:
        await do("before")
        try:
            return await inbox.recv()
        finally:
            await do("tidy")

    rt = await processes.runtime(careful, settings=quick())
    handle = await rt.start(careful(), id="one")
    await waits.on("message", "one", "inbox")
    await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(PATIENCE)
    for step in ("2", "3"):  # what was interrupted, and a step of its clean-up
        forked = await rt.fork("one", from_step=step)
        await forked.send(inbox, "hello")
        assert await forked.result(PATIENCE) == "hello"
        assert await forked.read(log).collect() == ["in before", "in tidy"]
    assert ran == {"before": 1, "tidy": 3}
    assert await state(database, "one") == "CANCELLED"


async def test_w12_a_failed_one_is_forked_with_other_code(processes: Processes) -> None:
    wrong = [True]

    @hf.step
    async def check() -> str:
        if wrong:
            raise ValueError("wrong")
        return "right"

    @hf.workflow
    async def checks() -> str:
        await do("before")
        return await check()

    rt = await processes.runtime(checks)
    with pytest.raises(hf.WorkflowFailed):
        await rt.run(checks(), id="one")
    wrong.clear()
    assert await (await rt.fork("one", from_step="2")).result(PATIENCE) == "right"
    assert ran["before"] == 1


async def test_w12_w8_children_stay_the_originals_and_new_ones_are_its_own(processes: Processes) -> None:
    @hf.workflow
    async def child(label: str) -> str:
        return await do(label)

    @hf.workflow
    async def parent() -> list[str]:
        handle = await hf.start(child("a"))
        return [await handle.result(), await child("b"), await child("c"), handle.id]

    rt = await processes.runtime(parent, child)
    assert await rt.run(parent(), id="one") == ["a", "b", "c", "one/1"]
    forked = await rt.fork("one", from_step="4", id="two")
    assert await forked.result(PATIENCE) == ["a", "b", "c", "one/1"]
    assert ran == {"a": 1, "b": 1, "c": 2}
    assert {found.id for found in await rt.list(parent="one")} == {"one/1", "one/3", "one/4"}
    assert [found.id for found in await rt.list(parent="two")] == ["two/4"]


# What is inside of what: items of an `each`, executions before a continue_as


async def record(database: Connection, step: str, seq: int, kind: str = "step") -> None:
    """A step that has written a value and set an event."""
    await database.execute(
        "insert into holdfast.steps (workflow_id, step_id, seq, kind, name, outcome, output, started_at, "
        "finished_at) values ('one', $1, $2, $3, 'x', 0, '1', now(), now())",
        step,
        seq,
        kind,
    )
    await database.execute(
        'insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, '
        "created_at) select 'one', 'log', count(*), to_json($1::text)::text::bytea, 1, $1, now() "
        "from holdfast.stream_values where workflow_id = 'one'",
        step,
    )
    await database.execute(
        "insert into holdfast.events (workflow_id, key, revision, payload, step_id, created_at) "
        "select 'one', 'stage', count(*) + 1, to_json($1::text)::text::bytea, $1, now() "
        "from holdfast.events where workflow_id = 'one'",
        step,
    )


@pytest.mark.parametrize(
    ("step", "copied"),
    [
        ("7#1", ["1", "7#3"]),
        ("7#2", ["1", "7#3", "7#1"]),
        ("7", ["1"]),
        ("8", ["1", "7#3", "7#1", "7#2", "7"]),
    ],
)
async def test_w12_items_of_an_each_belong_to_it(
    processes: Processes, database: Connection, step: str, copied: list[str]
) -> None:
    client = await processes.client()
    await client.start(hf.WorkflowRef[[], str]("eaches")(), id="one")
    for seq, name in enumerate(["1", "7#3", "7#1", "7#2", "7", "8"]):
        await record(database, name, seq)
    await client.fork("one", from_step=step, id="two")
    assert [entry[0] for entry in await journal(database, "two")] == copied
    values = [value for _, value in (await client.get_events("two", history=True))["stage"]]
    assert values == copied


async def test_w12_of_executions_before_continue_as_what_they_said_comes_along(
    processes: Processes, database: Connection
) -> None:
    client = await processes.client()
    await client.start(hf.WorkflowRef[[], str]("goes_on")(), id="one")
    await database.execute("update holdfast.workflows set generation = 2")
    for seq, name in enumerate(["1", "1~1", "1~2", "2~1", "2~2"]):
        await record(database, name, seq)
    await database.execute("delete from holdfast.steps where step_id not like '2~%'")
    await client.fork("one", from_step="2~2", id="two")
    assert [entry[0] for entry in await journal(database, "two")] == ["2~1"]
    values = [value for _, value in (await client.get_events("two", history=True))["stage"]]
    assert values == ["1", "1~1", "1~2", "2~1"]
    assert await database.fetchval("select generation from holdfast.workflows where id = 'two'") == 2
    with pytest.raises(LookupError):
        await client.fork("one", from_step="1~2")


async def test_w12_any_size(processes: Processes, database: Connection) -> None:
    client = await processes.client()
    await client.start(hf.WorkflowRef[[], str]("large")(), id="one")
    await database.execute(
        """
        insert into holdfast.steps (workflow_id, step_id, seq, kind, name, outcome, output, started_at,
            finished_at)
            select 'one', n::text, n, 'step', 's', 0, '1', now(), now() from generate_series(1, 20000) n;
        insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, created_at)
            select 'one', 's' || n % 10, n / 10, n::text::bytea, 1, (n / 5)::text, now()
            from generate_series(5, 100004) n;
        """
    )
    await client.fork("one", from_step="10000", id="two")
    assert await database.fetchval("select count(*) from holdfast.steps where workflow_id = 'two'") == 9999
    rows = await database.fetch(
        'select key, min("offset") as low, max("offset") as high, count(*) as n from holdfast.stream_values '
        "where workflow_id = 'two' group by key"
    )
    assert sum(row["n"] for row in rows) == 49_995
    assert all((row["low"], row["high"]) == (0, row["n"] - 1) for row in rows)


# Payloads that know for whom they were encoded


class Bound:
    """Bytes that open only for the very row they were made for."""

    def _key(self, context: PayloadContext) -> bytes:
        parts = "\0".join((context.schema, context.workflow_id, context.kind, context.name))
        return hashlib.sha256(parts.encode()).digest()

    def encode(self, data: bytes, context: PayloadContext, /) -> bytes:
        key = self._key(context)
        sealed = bytes(byte ^ key[place % 32] for place, byte in enumerate(data))
        return hmac.digest(key, sealed, "sha256") + sealed

    def decode(self, data: bytes, context: PayloadContext, /) -> bytes:
        key = self._key(context)
        if not hmac.compare_digest(data[:32], hmac.digest(key, data[32:], "sha256")):
            raise ValueError(f"made for another row than {context}")
        return bytes(byte ^ key[place % 32] for place, byte in enumerate(data[32:]))


@hf.step
async def fails() -> None:
    raise ValueError("as always")


@hf.workflow
async def everything(name: str) -> list[Any]:
    said: list[Any] = [name, await do(name), str(await hf.uuid())]
    said.append(await inbox.recv())
    said.append(await hf.get_event("source", stage))
    try:
        await fails()
    except ValueError as error:
        said.append(str(error))
    said.append(await story_of(name))
    await log.write("mine")
    await stage.set("mine")
    said.append(await inbox.recv())
    return said


@hf.workflow
async def story_of(name: str) -> str:
    return f"child of {name}"


@hf.workflow
async def source() -> None:
    await stage.set("source's")
    await log.write("source's")
    await inbox.recv()


@hf.workflow
async def witness(of: str) -> list[str]:
    got = await hf.get_event(of, stage)
    return [got, await inbox.recv()]


async def test_w12_k3_every_payload_is_read_as_what_it_was_encoded_for(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    settings = quick(codec=Bound())
    all_of_them = (everything, story_of, source, witness)
    rt = await processes.runtime(*all_of_them, settings=settings)
    await rt.start(source(), id="source")
    handle = await rt.start(everything("ada"), id="one")
    await handle.send(inbox, "first")
    await handle.send(inbox, "second")
    told = await handle.result(PATIENCE)
    forked = await handle.fork(from_step="9", id="two")
    again = await rt.fork("one", from_step="8", id="other")
    await waits.on("message", "two", "inbox")
    twice = await rt.fork("two", from_step="7", id="three")
    await waits.on("message", "three", "inbox")
    for fork in (forked, again, twice):
        await fork.send(inbox, "second")
        assert await fork.result(PATIENCE) == told
        assert await rt.get_events(fork.id, history=True) == {"stage": [(1, "in ada"), (2, "mine")]}
        assert await fork.get(stage) == "mine"
        assert [value async for value in fork.watch(stage)] == ["mine"]
        assert await fork.read(log).collect() == ["in ada", "mine"]
        errors = [step.error for step in await rt.steps(fork.id) if step.error]
        assert errors == ["ValueError: as always"]
    # Whoever gets an event of a fork, and is replayed, and is forked.
    early = await rt.fork("one", from_step="9", id="early")
    watcher = await rt.start(witness(early.id), id="witness")
    await waits.on("message", "witness", "inbox")
    of_source = await rt.fork("source", from_step="2", id="source two")
    await waits.on("message", "source two", "inbox")
    second = await rt.start(witness("source two"), id="witness two")
    await waits.on("message", "witness two", "inbox")
    waits.forget()
    await processes.leave(rt)
    rt = await processes.runtime(*all_of_them, settings=settings)
    for name in ("witness", "witness two"):
        await waits.on("message", name, "inbox")
        await rt.fork(name, from_step="1", id=f"again {name}")
        await waits.on("message", f"again {name}", "inbox")
        await rt.send(name, "end", inbox)
        await rt.send(f"again {name}", "end", inbox)
    assert await rt.handle(watcher.id).result(PATIENCE) == ["mine", "end"]
    assert await rt.handle("again witness").result(PATIENCE) == ["mine", "end"]
    assert await rt.handle(second.id).result(PATIENCE) == ["source's", "end"]
    assert await rt.handle("again witness two").result(PATIENCE) == ["source's", "end"]
    replayed = await rt.fork("witness two", from_step="2", id="with the answer")
    await replayed.send(inbox, "once more")
    assert await replayed.result(PATIENCE) == ["source's", "once more"]
    assert of_source.id == "source two"
