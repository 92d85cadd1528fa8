"""Nothing of a payload, a password or a DSN is told: in no log, no repr, no text of an exception [K4]."""

from __future__ import annotations

import logging
import secrets
import traceback
from collections.abc import Awaitable
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from holdfast.testing.faults import Proxy
from tests.processes import Processes, Waits, terminate, within

LETTERS = hf.Topic[Any]("letters")
GO = hf.Topic[None]("go")


class Opaque:
    """Cannot be stored; shows what it holds."""

    def __init__(self, held: str) -> None:
        self.held = held

    def __repr__(self) -> str:
        return self.held


@hf.step
async def same(value: str) -> str:
    return value


@hf.step(attempts=2, wait_initial=0.001)
async def fails(value: str) -> None:
    raise LookupError("no")


@hf.workflow
async def busy(value: str, number: int = 0) -> str:
    """Uses a value in every way, and every way in which it can be refused."""
    me = hf.current().workflow_id
    await same(value)
    await hf.set_event("k", value)
    await hf.write_stream("s", value)
    await LETTERS.send(me, value)
    told = [repr(hf.recv("letters")), repr(hf.current()), repr(LETTERS.send(me, value)), repr(same(value))]
    calls: list[Awaitable[Any]] = [
        hf.send(me, Opaque(value)),
        hf.set_event("k", [value, Opaque(value)]),
        hf.write_stream("s", value * 100_000),
        hf.recv("letters", type=int),
        hf.get_event(me, "k", type=int),
        fails(value),
    ]
    for call in calls:
        try:
            await call
        except hf.HoldfastError as error:
            told += [repr(error), str(error), *shown(error)]
    await GO.recv()
    return "\n".join(text.replace(value, "SECRET") for text in told)


def shown(error: BaseException) -> list[str]:
    """What a log shows of an exception, without the lines of source."""
    return [line for line in traceback.format_exception(error) if not line.startswith("  File")]


async def test_k4_of_a_payload(
    processes: Processes, database: Connection, dsn: str, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = secrets.token_hex(8)
    told: list[str] = []
    async with Proxy(dsn) as proxy:
        rt, client = await processes.runtime(busy, dsn=proxy.dsn), await processes.client()
        call = busy(secret)
        handle = await rt.start(call, id="w")
        await waits.on("message", "w", "go")
        proxy.lose_reply("commit_batch")
        await terminate(database, "listener")
        for failing in (
            client.get_event("w", "k", type=int),
            client.read_stream("w", "s", type=int).collect(),
            client.send("w", Opaque(secret)),
            client.send("w", secret * 100_000),
            client.start(hf.WorkflowRef[..., None]("other")(Opaque(secret)), id="other"),
            client.start(hf.WorkflowRef[..., None]("other")(secret), id="w"),
        ):
            with pytest.raises(hf.HoldfastError) as caught:
                await failing
            told += [repr(caught.value), str(caught.value), *shown(caught.value)]
        await handle.send(GO, None)
        inside = await within(10, handle.result())
        assert "SECRET" not in inside
        items = [item async for item in handle.read("s").items()]
        told += [
            repr(each)
            for each in (
                call,
                handle,
                handle.read("s"),
                items,
                await rt.steps("w"),
                await rt.list(),
                rt,
                client,
            )
        ]
        told += [repr(rt.statistics()), repr(await handle.status())]
        await processes.leave(rt)
    everything = "\n".join([*told, caplog.text])
    assert len(told) > 20
    assert secret not in everything


async def test_k4_of_a_dsn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = secrets.token_hex(8)
    impatient = hf.Settings(database_patience=0.05)
    told: list[str] = []
    for dsn in (
        f"postgresql://user:{secret}@127.0.0.1:1/{secret}",
        f"postgresql://user:{secret}@{secret}.invalid/db",
        f"postgresql://user:{secret}@127.0.0.1:nonsense/db",
        f"mysql://user:{secret}@127.0.0.1/db",
    ):
        with pytest.raises((hf.DatabaseUnavailable, hf.ConfigurationError)) as caught:
            async with hf.Client(dsn, settings=impatient):
                pass
        told += [repr(caught.value), str(caught.value), *shown(caught.value)]
    assert secret not in "\n".join([*told, caplog.text])
    assert secret not in repr(hf.Client(f"postgresql://user:{secret}@127.0.0.1/db"))
    assert secret not in repr(hf.Runtime(f"postgresql://user:{secret}@127.0.0.1/db"))


async def test_k4_of_a_log_in_that_is_refused(dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = secrets.token_hex(8)
    before, _, rest = dsn.partition("/holdfast_test_")
    wrong = f"{before}/{secret}" + (f"?{rest.partition('?')[2]}" if "?" in rest else "")
    with pytest.raises(hf.HoldfastError) as caught:
        async with hf.Client(wrong, settings=hf.Settings(database_patience=0.5)):
            pass
    assert secret not in "\n".join([str(caught.value), *shown(caught.value), caplog.text])


async def test_k4_of_a_record_that_the_database_refuses(
    processes: Processes, database: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A rule that a DBA has added makes PostgreSQL show the row in its DETAIL."""
    caplog.set_level(logging.DEBUG)
    secret = secrets.token_hex(8)
    await database.execute("alter table holdfast.events add check (length(payload) < 10)")
    rt = await processes.runtime(sets)
    handle = await rt.start(sets(secret))
    with pytest.raises(hf.WorkflowFailed) as caught:
        await within(5, handle.result())
    told = [str(caught.value), *shown(caught.value), repr(await rt.steps(handle.id)), repr(await rt.list())]
    status = await handle.status()
    assert secret not in "\n".join([*told, str(status.error), caplog.text])


@hf.workflow
async def sets(value: str) -> None:
    await hf.set_event("k", value)
