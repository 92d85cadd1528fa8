"""Mailboxes and streams to look at [M10]."""

from __future__ import annotations

import json

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits
from tests.runtime.witness import PATIENCE

log = hf.Stream[int]("log")


@hf.workflow
async def sender(to: str) -> None:
    await hf.send(to, "from a workflow", "letters")


@hf.workflow
async def receiver() -> str:
    await hf.recv()
    await hf.sleep(0)
    return await hf.recv("letters", type=str) + await hf.recv("go on", type=str)


@hf.workflow
async def writer() -> None:
    await log.write(1, 2, 3)
    await log.close()
    await hf.write_stream("open", None)
    await hf.close_stream("empty")
    await hf.recv("never")


async def test_m10_the_mailbox_tells_who_sent_when_and_who_took(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(receiver, sender)
    client = await processes.client()
    await rt.start(receiver(), id="one")
    await client.send("one", "outside")
    await client.send("one", "unread", "other")
    await rt.run(sender("one"), id="bob")
    await waits.on("message", "one", "go on")
    found = await client.messages("one")
    assert [(message.topic, message.sender, message.consumed_by) for message in found] == [
        (None, None, "1"),
        ("other", None, None),
        ("letters", "bob", "3"),
    ]
    moments = [message.created_at for message in found]
    assert moments == sorted(moments)
    assert all(moment.tzinfo is not None for moment in moments)
    assert "outside" not in repr(found)


async def test_m10_the_mailbox_is_read_in_pages(processes: Processes) -> None:
    client = await processes.client()
    await client.start(hf.WorkflowRef[[], str]("elsewhere")(), id="one")
    await client.start(hf.WorkflowRef[[], str]("elsewhere")(), id="two")
    for number in range(5):
        for workflow_id in ("one", "two"):
            await client.send(workflow_id, number, f"topic {number}")
    first = await client.messages("one", limit=3)
    rest = await client.messages("one", after=first[-1].id, limit=3)
    assert [message.topic for message in [*first, *rest]] == [f"topic {number}" for number in range(5)]
    for wrong in ({"limit": 0}, {"limit": 2**31}, {"after": 2**63}):
        with pytest.raises(ValueError, match=r"limit|after"):
            await client.messages("one", **wrong)
    assert await client.messages("one", after=2**63 - 1) == []


async def test_streams_tell_their_length_and_whether_they_are_closed(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(writer)
    await rt.start(writer(), id="one")
    await waits.on("message", "one", "never")
    expected = [("empty", 0, True), ("log", 3, True), ("open", 1, False)]
    assert [(info.name, info.length, info.closed) for info in await rt.streams("one")] == expected
    # Values before `oldest` are no longer kept.
    await database.execute("update holdfast.streams set oldest = 2 where key = 'log'")
    await database.execute("delete from holdfast.stream_values where key = 'log' and \"offset\" < 2")
    assert (await rt.streams("one"))[1].length == 1


async def test_streams_are_found_without_reading_their_values(
    processes: Processes, database: Connection
) -> None:
    client = await processes.client()
    await client.start(hf.WorkflowRef[[], str]("elsewhere")(), id="one")
    await database.execute(
        'insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, '
        "created_at) select 'one', 's' || n % 3, n / 3, '1', 1, '1', now() "
        "from generate_series(0, 29999) n; analyze"
    )
    query = client.engine.sql["streams.list"].replace("$1", "'one'")
    plan = json.loads(await database.fetchval(f"explain (analyze, buffers, format json) {query}"))
    assert plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"] < 60
    assert [(info.name, info.length) for info in await client.streams("one")] == [
        ("s0", 10_000),
        ("s1", 10_000),
        ("s2", 10_000),
    ]


async def test_what_is_empty_is_not_what_is_unknown(processes: Processes) -> None:
    client = await processes.client()
    await client.start(hf.WorkflowRef[[], str]("elsewhere")(), id="one")
    assert await client.messages("one") == []
    assert await client.streams("one") == []
    for look in (client.messages, client.streams, client.steps):
        with pytest.raises(hf.WorkflowNotFound):
            await look("nobody")


async def test_m10_a_workflow_that_has_ended_is_looked_at_too(processes: Processes) -> None:
    rt = await processes.runtime(receiver, sender)
    handle = await rt.start(receiver(), id="one")
    await handle.send(None, "x")
    await rt.run(sender("one"))
    await handle.send("go on", "!")
    assert await handle.result(PATIENCE) == "from a workflow!"
    assert [message.consumed_by for message in await rt.messages("one")] == ["1", "3", "4"]
