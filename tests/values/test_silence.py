"""Of a whole story nothing is told: no payload in a log, in a repr, in a text of an error of ours [K4]."""

from __future__ import annotations

import inspect
import logging
import secrets
import traceback

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, within
from tests.values import sealed
from tests.values.sealed import GO, Seal, letters, lines, news, story


@pytest.fixture
def secret() -> str:
    """Text that occurs nowhere else."""
    return f"no name, {secrets.token_hex(8)}"  # a key that could be a name is shown in paths


@pytest.mark.parametrize("codec", [None, Seal()], ids=["plain", "sealed"])
async def test_k4_the_whole_story_at_debug(
    processes: Processes,
    waits: Waits,
    database: Connection,
    caplog: pytest.LogCaptureFixture,
    codec: Seal | None,
    secret: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    await sealed.refuse(database)
    settings = hf.Settings(codec=codec)
    first = await processes.runtime(*sealed.WORKFLOWS, settings=settings)
    call = story(secret, more=secret)
    handle = await first.start(call, id="story")
    await waits.on("message", "story", "go")
    await processes.leave(first)
    second = await processes.runtime(*sealed.WORKFLOWS, settings=settings)
    client = await processes.client(settings=settings)
    await client.send("story", secret, GO)
    handle = client.handle(story, "story")
    assert secret in str(await within(20, handle.result()))
    told: list[object] = [call, handle, first, second, client, settings, codec, news, lines, letters]
    told += [handle.read(lines), await handle.status(), *await client.list(), *await client.steps("story")]
    told += [item async for item in handle.read(lines).items()]
    told += [client.statistics(), *sealed.WORKFLOWS, sealed.same, sealed.transacts]
    for failing in (sealed.fails, sealed.gives_what_cannot_be_stored, sealed.takes_too_long):
        with pytest.raises((hf.WorkflowFailed, hf.WorkflowCancelled)) as caught:
            await within(10, client.run(failing(secret)))
        told += [caught.value, str(caught.value)]
        assert isinstance(caught.value.__cause__, LookupError) or secret not in shown(caught.value)
    for wrong in (
        client.get_event("story", "news", type=int),
        client.read_stream("story", "lines", type=list[int]).collect(),
        client.send("story", [secret, object()]),
        client.send("story", secret * 100_000),
        client.send("story", {1: secret, "1": secret}),
        client.handle(hf.WorkflowRef[..., int]("story"), "story").result(),
    ):
        with pytest.raises(hf.HoldfastError) as refused:
            await wrong
        told += [refused.value, str(refused.value), shown(refused.value)]
    assert secret not in "\n".join(map(repr, told))
    assert secret not in caplog.text
    assert len(caplog.records) > 0


def shown(error: BaseException) -> str:
    """What a log shows of an exception, without the lines of source."""
    return "".join(line for line in traceback.format_exception(error) if not line.startswith("  File"))


def test_k4_no_public_class_shows_a_payload_by_default() -> None:
    """A dataclass or Struct that is public and may hold a payload has a repr of its own."""
    holding = {"value", "error", "attributes", "message", "payload", "dsn"}
    careless = [
        name
        for name in hf.__all__
        if inspect.isclass(found := getattr(hf, name))
        and not issubclass(found, BaseException)
        and holding & set(getattr(found, "__struct_fields__", getattr(found, "__dataclass_fields__", ())))
        and "__repr__" not in vars(found)
    ]
    assert careless == []
