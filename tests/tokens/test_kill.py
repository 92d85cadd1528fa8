"""SIGKILL while a token is redeemed: it is used or it is not, and the message is there or it is not."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

import holdfast as hf
from holdfast._store.connection import Connection

ROOT = Path(__file__).parents[2]
SIGNED = hf.Settings(hmac_keys=[b"k" * 32])
PROGRAM = """
import asyncio, os, signal, sys
import holdfast as hf
from holdfast._api import tokens

dsn, token, when = sys.argv[1:]
redeem = tokens.redeem_token

async def redeem_and_die(*args, **kwargs):
    if when == "after":
        assert await redeem(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    tokens.redeem_token = redeem_and_die
    async with hf.Client(dsn, settings=hf.Settings(hmac_keys=[b"k" * 32])) as client:
        await client.redeem(token, "from the dead")

asyncio.run(main())
"""


@hf.workflow
async def decide() -> str:
    return str(await hf.recv("decision"))


@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_at_the_commit_a_token_is_used_exactly_if_its_message_is_there(
    dsn: str, database: Connection, when: str
) -> None:
    async with hf.Runtime(dsn, workflows=[decide], settings=SIGNED) as rt:
        handle = await rt.start(decide())
        token = rt.token(handle, "decision", ttl=60)
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, dsn, token, when, cwd=ROOT
        )
        assert await child.wait() == -9
        if when == "before":
            await rt.redeem(token, "from the living")
        with pytest.raises(hf.TokenRejected):
            await rt.redeem(token, "once more")
        expected = "from the living" if when == "before" else "from the dead"
        assert await handle.result(timeout=10) == expected
    assert await database.fetchval("select count(*) from holdfast.messages") == 1
