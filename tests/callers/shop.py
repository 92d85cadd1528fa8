"""A workflow that talks back, a caller's bare connections, and a caller's process that is killed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import connect

LETTERS = hf.Topic[Any]("letters")
LAST = hf.Event[Any]("last")
LOG = hf.Stream[Any]("log")


@hf.workflow
async def shop(count: int = 1, *, note: str = "") -> list[Any]:
    """Takes so many letters, and tells of each."""
    taken = []
    for _ in range(count):
        taken.append(await LETTERS.recv())
        await LAST.set(taken[-1])
        await LOG.write(taken[-1])
    return [note, *taken] if note else taken


@hf.workflow
async def patient() -> None:
    await hf.recv("never")


@asynccontextmanager
async def connections(dsn: str) -> AsyncIterator[Callable[[], Awaitable[Connection]]]:
    """Makes connections as a caller has them, one after another."""
    async with AsyncExitStack() as stack:

        async def make() -> Connection:
            connection = await connect(dsn)
            stack.push_async_callback(connection.close, timeout=5)
            return connection

        yield make


async def main(dsn: str, until: str) -> None:
    """Starts and sends in a transaction, then hangs, before its commit or after it, until it is killed."""
    connection: Connection = await asyncpg.connect(dsn)
    async with hf.Client(dsn) as client:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("insert into public.orders values (17)")
        await client.start(shop(1), id="new", conn=connection)
        await client.send("old", "hello", LETTERS, conn=connection)
        if until == "after":
            await transaction.commit()
        print("here", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
