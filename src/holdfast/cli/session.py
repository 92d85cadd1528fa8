"""From arguments to an exit code: reaches the database, runs the command, says what went wrong."""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from holdfast import Client, ConfigurationError, Settings
from holdfast.cli.exits import Exit, alone, exit_code
from holdfast.cli.screen import Screen
from holdfast.config import resolve_dsn
from holdfast.embedded import Embedded

PATIENCE = 10.0
"""Seconds that a command waits for a database that does not answer."""


def run(given: argparse.Namespace) -> int:
    """Carries out a command. Ctrl-C and SIGTERM cancel it once; its cleaning up is not interrupted."""
    screen = Screen(json=given.json)
    logging.basicConfig(level=logging.WARNING, format="holdfast: %(message)s", stream=sys.stderr)
    try:
        return asyncio.run(_run(given, screen))
    except BrokenPipeError:
        # Who reads has seen enough. Nothing may be flushed into the pipe at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except (Exception, KeyboardInterrupt, asyncio.CancelledError) as error:
        found = alone(error)
        code = exit_code(found)
        if code is None:
            raise
        screen.complain("interrupted" if code is Exit.INTERRUPTED else found)
        return code


async def _run(given: argparse.Namespace, screen: Screen) -> int:
    task = asyncio.current_task()
    assert task is not None, "asyncio.run has made one"
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: None)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    code: int = await given.act(given, screen)
    return code


@asynccontextmanager
async def connected(given: argparse.Namespace, *, migrate: bool = False) -> AsyncIterator[Client]:
    """A client of the database that the arguments or the environment name; it does not touch the schema.

    Raises:
        ConfigurationError: if there is none; an embedded one is only used where there is one already.
    """
    dsn = resolve_dsn(given.dsn)
    if dsn is None and not migrate and not Embedded().home.is_dir():
        raise ConfigurationError(
            "no database: pass --dsn, set HOLDFAST_DATABASE_URL, or run this where .holdfast/ is "
            "(`holdfast migrate` makes one)"
        )
    settings = Settings(database_patience=PATIENCE, pool_size=2)
    async with Client(dsn, schema=given.schema, migrate=migrate, settings=settings) as client:
        yield client
