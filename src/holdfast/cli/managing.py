"""`holdfast cancel`, `resume`, `fork`: what becomes of workflows, from a shell."""

import argparse

from holdfast.cli.exits import Exit, UsageError
from holdfast.cli.screen import Screen
from holdfast.cli.session import connected
from holdfast.errors import HoldfastError


async def cancel(given: argparse.Namespace, screen: Screen) -> int:
    """Asks a workflow to end.

    Raises:
        WorkflowNotFound: if there is none of this id.
    """
    async with connected(given) as client:
        active = await client.cancel(given.id)
    if screen.json:
        screen.data({"id": given.id, "was_active": active})
    screen.talk("cancelling" if active else "it had ended already")
    return Exit.OK


async def resume(given: argparse.Namespace, screen: Screen) -> int:
    """Lets a workflow that has ended go on from its journal.

    Raises:
        WorkflowNotFound: if there is none of this id.
        WorkflowConflict: if it has ended by itself.
    """
    async with connected(given) as client:
        resumed = await client.resume(given.id)
    if screen.json:
        screen.data({"id": given.id, "resumed": resumed})
    screen.talk("resumed" if resumed else "it was active anyway")
    return Exit.OK


async def fork(given: argparse.Namespace, screen: Screen) -> int:
    """Makes a new workflow of another's history and prints its id.

    Raises:
        WorkflowNotFound: if there is none of this id.
        WorkflowConflict: if the new id belongs to another.
        UsageError: if there is no such step.
    """
    async with connected(given) as client:
        try:
            handle = await client.fork(given.id, from_step=given.from_step, id=given.fork_id)
        except HoldfastError:
            raise
        except LookupError as error:
            raise UsageError(str(error)) from None
    screen.data({"id": handle.id} if screen.json else handle.id)
    return Exit.OK
