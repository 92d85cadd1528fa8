"""Finds a PostgreSQL server for a run of tests: a given one, one in Docker, or the embedded one.

Only the server; the databases on it are made in `databases`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from holdfast.embedded import Embedded

__all__ = ["Server", "serve"]

_ROOM: Final = 2 << 30
"""Bytes that have to be free in /dev/shm before data goes there: Docker gives containers 64 MB."""


@dataclass(frozen=True)
class Server:
    """A server to make databases on; `dsn` is its maintenance database."""

    kind: Literal["url", "docker", "embedded"]
    dsn: str = field(repr=False)


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """A server for as long as the block lasts."""
    if url := os.environ.get("HOLDFAST_TEST_DATABASE_URL"):
        yield Server("url", url)
        return
    with Embedded(_home(), durable=False) as dsn:
        yield Server("embedded", dsn)


def _home() -> Path:
    """One place per user, so that runs at the same time share a server and the next one starts warm."""
    memory = Path("/dev/shm")  # noqa: S108
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ROOM
    return (memory if roomy else Path(tempfile.gettempdir())) / f"holdfast-tests-{os.geteuid()}"
