"""Where the demonstration keeps its data: the database that was given, else one that is gone afterwards."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from holdfast.config import resolve_dsn
from holdfast.embedded import Embedded


@dataclass(frozen=True)
class Database:
    """A database, in words, how other processes get to it, and whether it is there afterwards."""

    dsn: str
    words: str
    environment: dict[str, str]
    stays: bool


@asynccontextmanager
async def a_database(dsn: str | None) -> AsyncIterator[Database]:
    """The database of the argument or of the environment, else a private server in a temporary folder.

    Raises:
        ConfigurationError: if there is no PostgreSQL to run either.
    """
    given = resolve_dsn(dsn)
    if given is not None:
        # In the environment and not among the arguments, where all users of the machine could read it.
        yield Database(given, "the one that was given", {"HOLDFAST_DATABASE_URL": given}, stays=True)
        return
    folder = _create()
    try:
        embedded = Embedded(folder / "home")
        async with _serving(embedded) as private:
            # They join the server by its home: the last one out stops it, even if this process is killed.
            environment = {
                "HOLDFAST_HOME": str(embedded.home),
                "HOLDFAST_DATABASE_URL": "",
                "DATABASE_URL": "",
            }
            words = "a private PostgreSQL in a temporary folder"
            yield Database(private, words, environment, stays=False)
    finally:
        _remove(folder)


@asynccontextmanager
async def _serving(embedded: Embedded) -> AsyncIterator[str]:
    starting = asyncio.create_task(asyncio.to_thread(embedded.acquire), name="start PostgreSQL")
    try:
        dsn = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # The thread goes on, so wait for what it starts: it has to be stopped.
        await asyncio.wait({starting})
        if starting.exception() is None:
            await asyncio.to_thread(embedded.release)
        raise
    try:
        yield dsn
    finally:
        await asyncio.to_thread(embedded.release)


def _create() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    if os.geteuid() == 0:
        folder.chmod(0o711)  # root's server runs as somebody else, who has to get there
    return folder


def _remove(folder: Path) -> None:
    link = folder / "home" / "server"
    if link.is_symlink():  # where root's server found shelter
        shutil.rmtree(link.readlink(), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
