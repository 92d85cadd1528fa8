"""`holdfast start`, `send`, `event`, `watch`, `tail`: talking to workflows from a shell."""

import argparse
import sys
from typing import Any

import msgspec

from holdfast import Call, WorkflowRef
from holdfast.cli.exits import Exit, UsageError
from holdfast.cli.screen import Screen
from holdfast.cli.session import connected


async def start(given: argparse.Namespace, screen: Screen) -> int:
    """Starts a workflow and prints its id, or with --wait its result.

    Raises:
        WorkflowConflict: if the id belongs to another workflow.
        WorkflowFailed, WorkflowCancelled, WaitTimeout: with --wait, if it ends like that.
    """
    call = _call(given.name, _no_json() if given.input is None else _json(given.input, "JSON"))
    async with connected(given) as client:
        handle = await client.start(call, id=given.id)
        if given.wait:
            screen.talk(f"started {handle.id}")
            screen.data(await handle.result(timeout=given.timeout))
        else:
            screen.data({"id": handle.id} if screen.json else handle.id)
    return Exit.OK


async def send(given: argparse.Namespace, screen: Screen) -> int:
    """Sends a message; it is committed when this returns.

    Raises:
        WorkflowNotFound, WorkflowFinished: if it cannot be received any more.
    """
    message = _json(given.message, "JSON")
    async with connected(given) as client:
        await client.send(given.id, message, given.topic or None, key=given.key)
    screen.talk("sent")
    return Exit.OK


async def event(given: argparse.Namespace, screen: Screen) -> int:
    """Prints an event as soon as it is set.

    Raises:
        WaitTimeout: if it was not set in time.
        WorkflowFinished: if the workflow is over and has not set it.
    """
    async with connected(given) as client:
        screen.data(await client.get_event(given.id, given.key, timeout=given.timeout))
    return Exit.OK


async def watch(given: argparse.Namespace, screen: Screen) -> int:
    """Prints an event and its changes until the workflow is over.

    Raises:
        WorkflowNotFound: if there is none of this id.
    """
    async with connected(given) as client:
        await client.status(
            given.id
        )  # a watcher would wait for it to exist; who types an id means one that does
        async for value in client.watch_event(given.id, given.key):
            screen.data(value)
    return Exit.OK


async def tail(given: argparse.Namespace, screen: Screen) -> int:
    """Prints a stream as it is written until it ends; as JSON with offsets, to resume by --after.

    Raises:
        WorkflowNotFound: if there is none of this id.
        UsageError: if --after is no offset.
    """
    async with connected(given) as client:
        try:
            stream = client.read_stream(given.id, given.stream, after=given.after)
        except ValueError as error:
            raise UsageError(str(error)) from None
        async with stream as reader:
            async for item in reader.items():
                screen.data(item if screen.json else item.value)
        screen.talk(f"the stream {'was closed' if reader.closed else 'ended with its workflow'}")
    return Exit.OK


def _json(text: str, what: str) -> object:
    """A value from the command line, or from stdin.

    Raises:
        UsageError: if it is not JSON.
    """
    source = sys.stdin.buffer.read() if text == "-" else text.encode()
    try:
        return msgspec.json.decode(source)
    except msgspec.DecodeError as error:
        raise UsageError(f"{what} is not JSON: {error}") from None


def _no_json() -> dict[str, Any]:
    return {}


def _call(name: str, given: object) -> Call[Any]:
    """An object is keyword arguments, an array positional ones; anything else is the only argument."""
    workflow = WorkflowRef[..., Any](name)
    if isinstance(given, dict):
        return workflow(**given)
    return workflow(*given) if isinstance(given, list) else workflow(given)
