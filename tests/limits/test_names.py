"""Names: bytes decide, whatever they mean elsewhere; what cannot be a name is refused before any I/O [K1]."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Points, Processes, Waits, within

HOSTILE = [
    " ",
    "\t\r\n",
    "\x01\x1b[31m\x7f",
    "%s %(x)s %% {} {0} {x}",
    "$1 $$ $body$",
    "' \" '' \"\" ` \\ \\\\ \\' \\0 \\x00",
    "'; drop table holdfast.messages; --",
    "a::b",
    "a:b,c;d|e/f.g",
    "/1",
    "..",
    "null",
    "None",
    "*",
    "é",
    "e\u0301",
    "\ufeffbom",
    "\u202eright to left\u202c אבג",
    "👩‍👩‍👧‍👦",
    "\uffff\U0010ffff",
    "İıſß",
    "UPPER",
    "upper",
    "x" * 256,
    "é" * 128,
]
BAD = ["", "\0", "a\0b", "\ud800", "a\udfffb", "x" * 10_240, "é" * 300]
NO_STRINGS: list[Any] = [1, b"bytes", [["list"]]]


@hf.workflow
async def echo(topic: str, key: str, stream: str) -> list[str]:
    message: list[str] = await hf.recv(topic)
    await hf.set_event(key, message)
    await hf.write_stream(stream, message)
    await hf.close_stream(stream)
    return message


@hf.workflow
async def sender(to: str, topic: str, key: str) -> list[str]:
    await hf.send(to, [to, topic], topic, key=topic)
    return list(await hf.get_event(to, key))


async def test_k1_hostile_names_come_back_as_they_were(processes: Processes, database: Connection) -> None:
    rt, client = await processes.runtime(echo, sender), await processes.client()

    async def through(name: str) -> None:
        handle = await client.start(echo(name, name, name), id=name)
        assert handle.id == name
        assert await rt.run(sender(name, name, name)) == [name, name]
        assert await handle.result() == [name, name]
        assert await client.get_event(name, name) == [name, name]
        assert await client.get_events(name) == {name: [name, name]}
        assert await client.read_stream(name, name).collect() == [[name, name]]
        assert (await handle.status()).id == name

    await within(30, asyncio.gather(*map(through, HOSTILE)))
    stored = await database.fetch("select workflow_id, topic, dedup_key from holdfast.messages")
    assert sorted(tuple(row) for row in stored) == sorted((name,) * 3 for name in HOSTILE)
    listed = {status.id for status in await client.list(name="echo")}
    assert listed == set(HOSTILE)


async def test_k1_ids_of_512_bytes(processes: Processes) -> None:
    rt = await processes.runtime(echo)
    for name in ("i" * 512, "é" * 256, "👩" * 128):
        handle = await rt.start(echo("t", "k", "s"), id=name)
        await rt.send(name, ["x"], "t")
        assert await handle.result() == ["x"]
    with pytest.raises(hf.InvalidName):
        await rt.start(echo("t", "k", "s"), id="i" * 513)


@hf.workflow
async def one(topic: str) -> object:
    return await hf.recv(topic)


async def test_k1_names_are_not_joined_with_separators_that_collide(
    processes: Processes, waits: Waits, points: Points
) -> None:
    rt = await processes.runtime(one)
    topics = {"a::b": "c", "a": "b::c", "a:": ":b::c", "a::": "b::c", "a/b": "c", "a/": "b/c", "ab": "c"}
    for workflow_id, topic in topics.items():
        await rt.start(one(topic), id=workflow_id)
        await waits.on("message", workflow_id, topic)
    looked = points.passed["recv.before_claim"]
    for workflow_id, topic in topics.items():
        await rt.send(workflow_id, workflow_id, topic)
        assert await rt.handle(workflow_id).result() == workflow_id
    assert points.passed["recv.before_claim"] == looked + len(topics)  # nobody was woken for another


async def test_k1_names_that_look_alike_are_different(processes: Processes) -> None:
    rt = await processes.runtime(one)
    alike = ["é", "e\u0301", "É", "E", "e", "e ", " e", "ｅ", "\u0435", "ﬁ", "fi"]
    handles = [await rt.start(one(name), id=name) for name in alike]
    for name in alike:
        await rt.send(name, name, name)
    assert [await handle.result() for handle in handles] == alike


@hf.workflow
async def both_topics() -> list[Any]:
    return [
        await hf.recv("é", timeout=0, default="nothing"),
        await hf.recv("e\u0301"),
        await hf.recv(),
        await hf.recv("None"),
    ]


async def test_k1_no_normalisation_of_topics_and_none_is_no_name(processes: Processes) -> None:
    client = await processes.client()
    handle = await client.start(both_topics())
    await handle.send("None", "named None")
    await handle.send(None, "no topic")
    await handle.send("e\u0301", "decomposed")
    await processes.runtime(both_topics)
    assert await handle.result() == ["nothing", "decomposed", "no topic", "named None"]


Bad = Callable[[hf.Client, str], Awaitable[Any]]


async def iterated(values: Any) -> Any:  # noqa: ANN401
    return [value async for value in values]


OUTSIDE: dict[str, Bad] = {
    "start id": lambda c, bad: c.start(one("t"), id=bad),
    "send id": lambda c, bad: c.send(bad, 1),
    "send topic": lambda c, bad: c.send("w", 1, bad),
    "send key": lambda c, bad: c.send("w", 1, key=bad),
    "get_event id": lambda c, bad: c.get_event(bad, "k", timeout=0),
    "get_event key": lambda c, bad: c.get_event("w", bad, timeout=0),
    "get_events id": lambda c, bad: c.get_events(bad),
    "watch_event id": lambda c, bad: iterated(c.watch_event(bad, "k")),
    "watch_event key": lambda c, bad: iterated(c.watch_event("w", bad)),
    "read_stream id": lambda c, bad: iterated(c.read_stream(bad, "s")),
    "read_stream name": lambda c, bad: iterated(c.read_stream("w", bad)),
    "handle id": lambda c, bad: c.handle(bad).status(),
    "handle topic": lambda c, bad: c.handle("w").send(bad, 1),
    "handle key": lambda c, bad: c.handle("w").send("t", 1, key=bad),
    "handle event": lambda c, bad: c.handle("w").get(bad),
    "handle watch": lambda c, bad: iterated(c.handle("w").watch(bad)),
    "handle stream": lambda c, bad: iterated(c.handle("w").read(bad)),
    "cancel": lambda c, bad: c.cancel(bad),
    "status": lambda c, bad: c.status(bad),
    "steps": lambda c, bad: c.steps(bad),
}


@pytest.mark.parametrize("bad", [*BAD, *NO_STRINGS], ids=lambda each: ascii(each)[:20])
async def test_k1_a_bad_name_is_refused_from_outside_before_any_io(processes: Processes, bad: str) -> None:
    client = await processes.client()
    await client.list()
    before = client.statistics()
    for act in OUTSIDE.values():
        with pytest.raises(hf.InvalidName):
            await within(5, act(client, bad))
    after = client.statistics()
    assert (after.writer, after.lookups, after.pool) == (before.writer, before.lookups, before.pool)


INSIDE: dict[str, Callable[[str], Any]] = {
    "recv": lambda bad: hf.recv(bad),
    "send id": lambda bad: hf.send(bad, 1),
    "send topic": lambda bad: hf.send("w", 1, bad),
    "send key": lambda bad: hf.send("w", 1, key=bad),
    "set_event": lambda bad: hf.set_event(bad, 1),
    "get_event id": lambda bad: hf.get_event(bad, "k"),
    "get_event key": lambda bad: hf.get_event("w", bad),
    "write_stream": lambda bad: hf.write_stream(bad, 1),
    "close_stream": lambda bad: hf.close_stream(bad),
    "start": lambda bad: hf.start(one("t"), id=bad),
}


@hf.step
async def all_in_step() -> list[str]:
    return await attempts({name: act for name, act in INSIDE.items() if name not in ("recv", "start")})


@hf.workflow
async def all_inside(in_step: bool) -> list[str]:
    return await all_in_step() if in_step else await attempts(INSIDE)


async def attempts(acts: dict[str, Callable[[str], Any]]) -> list[str]:
    accepted = []
    for place, act in acts.items():
        for bad in (*BAD, *NO_STRINGS):
            try:
                await act(bad)
            except hf.InvalidName:
                continue
            except Exception as error:
                accepted.append(f"{place} {bad!a:.20}: {error!r}")
            else:
                accepted.append(f"{place} {bad!a:.20}")
    return accepted


@pytest.mark.parametrize("in_step", [False, True], ids=["workflow", "step"])
async def test_k1_a_bad_name_is_refused_inside_and_nothing_is_recorded(
    processes: Processes, in_step: bool
) -> None:
    rt = await processes.runtime(all_inside)
    handle = await rt.start(all_inside(in_step))
    assert await within(10, handle.result()) == []
    assert [step.kind for step in await rt.steps(handle.id)] == ["step"] * in_step


@pytest.mark.parametrize("bad", BAD, ids=lambda each: ascii(each)[:20])
def test_k1_a_channel_or_a_definition_with_a_bad_name_cannot_be_made(bad: str) -> None:
    for make in (hf.Topic, hf.Event, hf.Stream, hf.WorkflowRef):
        with pytest.raises(hf.InvalidName):
            make(bad)


def test_k1_a_definition_with_a_name_that_is_too_long_cannot_be_made() -> None:
    async def fn() -> None: ...

    for bad in BAD[1:]:
        with pytest.raises(hf.InvalidName):
            hf.workflow(name=bad)(fn)
        with pytest.raises(hf.InvalidName):
            hf.step(fn, name=bad)


async def test_k1_a_str_of_another_class_is_the_plain_name(processes: Processes) -> None:
    class Key(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "another"

        def encode(self, *args: Any, **kwargs: Any) -> bytes:  # noqa: ANN401
            return b"another"

    rt = await processes.runtime(one)
    handle = await rt.start(one("topic"), id=Key("id"))
    assert type(handle.id) is str
    await rt.send(Key("id"), 1, Key("topic"))
    assert await handle.result() == 1


@hf.workflow
async def long_lineage() -> list[str]:
    seen = []
    for call in (one("t"), hf.start(one("t"))):
        try:
            await call
        except hf.InvalidName:
            seen.append("refused")
    await hf.recv("go")
    return seen


async def test_k1_a_child_whose_id_would_be_too_long_is_refused_and_a_replay_passes_it(
    processes: Processes, waits: Waits
) -> None:
    first = await processes.runtime(long_lineage, one)
    await first.start(long_lineage(), id="p" * 511)
    await waits.on("message", "p" * 511, "go")
    await processes.leave(first)
    second = await processes.runtime(long_lineage, one)
    await second.send("p" * 511, None, "go")
    assert await within(5, second.handle("p" * 511).result()) == ["refused", "refused"]
