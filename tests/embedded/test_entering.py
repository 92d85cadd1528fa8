"""A client that is cancelled while its server starts leaves none behind."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import holdfast as hf
from holdfast.embedded import Embedded


async def test_cancelled_while_the_server_starts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOLDFAST_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOLDFAST_HOME", str(home))
    loop, starting, released = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    acquire, release = Embedded.acquire, Embedded.release

    def acquire_and_say(server: Embedded) -> str:
        loop.call_soon_threadsafe(starting.set)
        return acquire(server)

    def release_and_say(server: Embedded) -> None:
        release(server)
        loop.call_soon_threadsafe(released.set)

    monkeypatch.setattr(Embedded, "acquire", acquire_and_say)
    monkeypatch.setattr(Embedded, "release", release_and_say)

    async def enter() -> None:
        async with hf.Client():
            pytest.fail("it was cancelled before")

    entering = asyncio.create_task(enter())
    await starting.wait()
    entering.cancel()
    await asyncio.sleep(0)
    entering.cancel()  # once more: impatience changes nothing
    with pytest.raises(asyncio.CancelledError):
        await entering
    await asyncio.wait_for(released.wait(), 10)
    assert not (home / "data" / "postmaster.pid").exists()
