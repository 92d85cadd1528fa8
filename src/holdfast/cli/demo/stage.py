"""What a process of the demonstration has of the others: lines of JSON on its stdin and its stdout.

Its stdin ends when the one who started it ends, however that ended: so nobody is left behind.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec


def tell(event: str, **facts: object) -> None:
    """Says something, at once: it has left this process when this returns, whatever happens next."""
    line = msgspec.json.encode({"event": event, "pid": os.getpid(), "at": time.time(), **facts})
    with contextlib.suppress(BrokenPipeError):
        os.write(1, line + b"\n")


async def orders() -> AsyncIterator[dict[str, Any]]:
    """What this process is told to do, until its stdin ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while line := await reader.readline():
            yield msgspec.json.decode(line)
    finally:
        transport.close()
