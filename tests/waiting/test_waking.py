"""Waking: by bells, never by asking again and again; and what happens when bells are lost [N1-N5]."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.faults import Direction, Proxy, _Statement
from tests.processes import Processes, Waits, terminate
from tests.runtime.witness import PATIENCE, Signals, quick


@hf.workflow
async def receive() -> str:
    return str(await hf.recv("word"))


@hf.workflow
async def wait_for_event(of: str) -> str:
    return str(await hf.get_event(of, "word"))


@hf.workflow
async def relay(to: str) -> str:
    word = str(await hf.recv("word"))
    await hf.set_event("word", word)
    await hf.write_stream("words", word)
    await hf.send(to, word, "word")
    return word


class Counting(Proxy):
    """A proxy that counts the statements that pass."""

    def __init__(self, target_dsn: str) -> None:
        super().__init__(target_dsn)
        self.statements: Counter[str] = Counter()

    def _fault_of(self, text: str) -> _Statement | None:
        self.statements[text] += 1
        return super()._fault_of(text)


async def _beats(rt: hf.Client, times: int) -> None:
    for _ in range(times):
        heard = rt.statistics().listener.last_heard
        async with asyncio.timeout(PATIENCE):
            while rt.statistics().listener.last_heard == heard:
                await asyncio.sleep(0.005)


async def test_n1_an_idle_process_sends_its_heartbeat_and_nothing_else(
    processes: Processes, dsn: str, waits: Waits
) -> None:
    async with Counting(dsn) as proxy:
        rt = await processes.runtime(receive, wait_for_event, dsn=proxy.dsn, settings=quick(heartbeat=0.05))
        client = await processes.client(dsn=proxy.dsn, settings=quick(heartbeat=0.05))
        for number in range(50):
            await rt.start(receive(), id=f"r{number}")
            await rt.start(wait_for_event(f"r{number}"), id=f"e{number}")
        waiting = [asyncio.create_task(client.handle(f"r{number}").result()) for number in range(50)]
        reading = asyncio.create_task(client.read_stream("r0", "never").collect())
        for number in range(50):
            await waits.on("message", f"r{number}", "word")
            await waits.on("event", f"r{number}", "word")
            await waits.on("end", f"r{number}", times=2)
        await waits.on("stream", "r0", "never")
        # What was asked at the start (who is dead?) is over after some beats.
        await _beats(rt, 8)
        proxy.statements.clear()
        await _beats(rt, 10)
        assert {text for text in proxy.statements if "beat(" not in text} == set()
        assert 15 <= sum(proxy.statements.values()) <= 40
        for task in (*waiting, reading):
            task.cancel()
        await processes.leave(client)
        await processes.leave(rt)


async def test_n2_one_connection_listens_outside_any_transaction(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(receive, settings=quick())
    for number in range(20):
        await rt.start(receive(), id=str(number))
        await waits.on("message", str(number), "word")
    rows = await database.fetch(
        "select application_name, state from pg_stat_activity "
        "where datname = current_database() and application_name like 'holdfast listener%'"
    )
    assert len(rows) == 1
    assert rows[0]["state"] in ("idle", "active")


@pytest.mark.parametrize("bells", ["heard", "lost"])
async def test_n3_a_commit_of_this_process_wakes_its_own_waiters_directly(
    processes: Processes, dsn: str, waits: Waits, bells: str
) -> None:
    """Even where no notification arrives at all."""
    async with (
        Proxy(dsn) as proxy,
        hf.Runtime(
            dsn, workflows=[receive, relay, wait_for_event], listen_dsn=proxy.dsn, settings=quick(heartbeat=2)
        ) as rt,
    ):
        await rt.start(receive(), id="last")
        await rt.start(relay("last"), id="first")
        await rt.start(wait_for_event("first"), id="event")
        await waits.on("message", "last", "word")
        await waits.on("message", "first", "word")
        await waits.on("event", "first", "word")
        if bells == "lost":
            proxy.deafen()
        begun = time.monotonic()
        await rt.send("first", "hello", "word")
        results = [
            await rt.handle(workflow_id).result(PATIENCE) for workflow_id in ("first", "last", "event")
        ]
        assert results == ["hello"] * 3
        assert await rt.read_stream("first", "words").collect() == ["hello"]
        assert time.monotonic() - begun < 3  # nobody notices before that the bells are lost


async def test_n3_names_of_any_length_ring(processes: Processes, waits: Waits) -> None:
    """Bells carry hashed keys: neither the longest names nor thousands of them are too long for one."""
    topic = "t" * 256
    receiver = "é" * 256

    @hf.workflow
    async def fan_out() -> None:
        async def one(number: int) -> None:
            await hf.set_event(f"{number:x>256}", number)

        await hf.send(receiver, "done", topic)
        await asyncio.gather(*(one(number) for number in range(1500)))

    @hf.workflow
    async def listen() -> str:
        return str(await hf.recv(topic))

    one = await processes.runtime(listen, settings=quick())
    other = await processes.runtime(fan_out, settings=quick())
    handle = await one.start(listen(), id=receiver)
    await waits.on("message", receiver, topic)
    last = asyncio.create_task(one.get_event("fan", f"{1499:x>256}", timeout=PATIENCE))
    await waits.on("event", "fan", f"{1499:x>256}")
    await other.run(fan_out(), id="fan")
    assert await handle.result(PATIENCE) == "done"
    assert await last == 1499


FAULTS = ["dead", "deaf", "half open"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_n4_a_listener_that_hears_nothing_is_noticed_within_three_seconds(
    processes: Processes, dsn: str, waits: Waits, signals: Signals, fault: str
) -> None:
    async with (
        Proxy(dsn) as proxy,
        hf.Runtime(dsn, workflows=[receive], listen_dsn=proxy.dsn, settings=quick(heartbeat=1)) as rt,
    ):
        handle = await rt.start(receive(), id="one")
        await waits.on("message", "one", "word")
        if fault == "dead":
            proxy.reset()
        elif fault == "deaf":
            proxy.deafen()
        else:
            proxy.swallow(Direction.TO_CLIENT)
        begun = time.monotonic()
        client = await processes.client()
        await client.send("one", "hello", "word")
        lost = asyncio.create_task(signals.heard("listener.lost"))
        done, _ = await asyncio.wait([lost], timeout=5)
        assert done, "not noticed"
        proxy.heal()
        assert await handle.result(PATIENCE) == "hello"
        assert time.monotonic() - begun < 10
        if fault == "dead":
            assert time.monotonic() - begun < 4


async def test_n4_after_a_reconnect_everybody_looks_once_and_together(
    processes: Processes, database: Connection, waits: Waits, signals: Signals
) -> None:
    client = await processes.client(settings=quick())
    for number in range(200):
        await client.start(receive(), id=str(number))
    waiting = [asyncio.create_task(client.handle(str(number)).result()) for number in range(200)]
    for number in range(200):
        await waits.on("end", str(number))
    before = client.statistics().lookups
    waits.forget()
    await terminate(database, "listener")
    for number in range(200):
        await waits.on("end", str(number))
    after = client.statistics().lookups
    assert after.looks - before.looks == 200
    assert after.queries - before.queries <= 3
    for task in waiting:
        task.cancel()


async def test_n4_what_was_committed_while_nobody_listened_is_found(
    processes: Processes, dsn: str, waits: Waits
) -> None:
    async with (
        Proxy(dsn) as proxy,
        hf.Runtime(dsn, workflows=[receive, wait_for_event], listen_dsn=proxy.dsn, settings=quick()) as rt,
    ):
        other = await processes.runtime(relay, settings=quick())
        await other.start(relay("one"), id="talker")
        one = await rt.start(receive(), id="one")
        event = await rt.start(wait_for_event("talker"), id="event")
        reading = asyncio.create_task(rt.read_stream("talker", "words").collect())
        await waits.on("message", "one", "word")
        await waits.on("event", "talker", "word")
        await waits.on("stream", "talker", "words")
        proxy.refuse()
        proxy.reset()
        await other.send("talker", "hello", "word")
        assert await other.handle("talker").result(PATIENCE) == "hello"
        with pytest.raises(hf.WaitTimeout):
            await other.handle("one").result(timeout=0.05)
        proxy.heal()
        assert await one.result(PATIENCE) == "hello"
        assert await event.result(PATIENCE) == "hello"
        assert await reading == ["hello"]


async def test_n5_a_listener_killed_between_wait_and_send_delays_little(
    processes: Processes, database: Connection, waits: Waits
) -> None:
    rt = await processes.runtime(receive, settings=quick(heartbeat=1))
    client = await processes.client(settings=quick(heartbeat=1))
    delays = []
    for number in range(5):
        handle = await rt.start(receive(), id=str(number))
        await waits.on("message", str(number), "word")
        await terminate(database, "listener")
        begun = time.monotonic()
        await client.send(str(number), "hello", "word")
        assert await handle.result(PATIENCE) == "hello"
        delays.append(time.monotonic() - begun)
    assert sorted(delays)[2] < 0.3, delays
    assert max(delays) < 5, delays
