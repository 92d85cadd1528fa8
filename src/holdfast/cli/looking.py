"""`holdfast list` and `holdfast show`: how workflows stand. Nothing here changes anything."""

import argparse
from datetime import datetime
from typing import Any

import msgspec

from holdfast import MessageInfo, PayloadDecodeError, StepInfo, StreamInfo, WorkflowStatus
from holdfast.cli.exits import Exit, UsageError
from holdfast.cli.screen import Screen, shade, to_json
from holdfast.cli.session import connected

_COLUMNS = {
    "id": "id",
    "name": "name",
    "status": "status",
    "created": "created",
    "took": "took",
    "error": "error",
}
_STEPS = {
    "step_id": "step",
    "kind": "kind",
    "name": "name",
    "started": "started",
    "took": "took",
    "error": "error",
}
_MESSAGES = {
    "sent": "sent",
    "topic": "topic",
    "sender": "sender",
    "consumed_by": "taken by",
}


async def list_(given: argparse.Namespace, screen: Screen) -> int:
    """Workflows, newest first."""
    attributes = None if given.attributes is None else _object(given.attributes)
    async with connected(given) as client:
        try:
            found = await client.list(
                name=given.name,
                status=given.status,
                queue=given.queue,
                attributes=attributes,
                parent=given.parent,
                id_prefix=given.id_prefix,
                executor=given.executor,
                created_after=given.created_after,
                created_before=given.created_before,
                finished_after=given.finished_after,
                finished_before=given.finished_before,
                limit=given.limit,
                cursor=given.cursor,
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
    screen.rows([_as_row(workflow, screen) for workflow in found], _COLUMNS)
    if not found:
        screen.talk("no workflows")
    if found.cursor is not None:
        screen.note(f"there are more: --cursor {found.cursor}")
    return Exit.OK


async def show(given: argparse.Namespace, screen: Screen) -> int:
    """One workflow with its events, streams, messages and its journal.

    Raises:
        WorkflowNotFound: if there is none of this id.
    """
    async with connected(given) as client:
        workflow = await client.status(given.id)
        try:
            events = await client.get_events(given.id)
        except PayloadDecodeError as error:
            # Perhaps encrypted; a command has no key, and shows what can be shown.
            events = {}
            screen.talk(f"its events cannot be read here: {error}")
        streams = await client.streams(given.id)
        messages = await client.messages(given.id)
        steps = await client.steps(given.id)
    if screen.json:
        parts = {
            "events": events,
            "streams": [_plain(stream) for stream in streams],
            "messages": [_plain(message) for message in messages],
            "steps": [_plain(step) for step in steps],
        }
        screen.data(_plain(workflow) | parts)
        return Exit.OK
    for key, value in _facts(workflow).items():
        screen.line((f"{key:<10}", "dim"), (value, shade(value)))
    if events:
        screen.line()
        for key, value in events.items():
            screen.line(("event ", "dim"), (key, "bold"), (f" = {to_json(value)}", ""))
    if streams:
        screen.line()
        for stream in streams:
            length = f"  {stream.length} values{', closed' if stream.closed else ''}"
            screen.line(("stream ", "dim"), (stream.name, "bold"), (length, ""))
    if messages:
        screen.line()
        screen.rows(
            [_plain(message) | {"sent": _moment(message.created_at)} for message in messages], _MESSAGES
        )
    if steps:
        screen.line()
        screen.rows([_plain(step) | _times(step) for step in steps], _STEPS)
    return Exit.OK


def _object(text: str) -> dict[str, Any]:
    """Attributes from the command line.

    Raises:
        UsageError: if they are no JSON object.
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise UsageError(f"--attributes is no JSON object: {error}") from None


def _as_row(workflow: WorkflowStatus, screen: Screen) -> dict[str, Any]:
    row = _plain(workflow)
    return row if screen.json else row | _times(workflow)


def _plain(value: WorkflowStatus | StepInfo | StreamInfo | MessageInfo) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(value)
    return built


def _times(value: WorkflowStatus | StepInfo) -> dict[str, str]:
    """When it was, in the words of people."""
    times = {"started": _moment(value.started_at), "took": _span(value.started_at, value.finished_at)}
    if isinstance(value, WorkflowStatus):
        times["created"] = _moment(value.created_at)
    return times


def _facts(workflow: WorkflowStatus) -> dict[str, str]:
    facts = {
        "id": workflow.id,
        "name": workflow.name,
        "status": workflow.status.value,
        "cancelling": "yes" if workflow.cancelling else "",
        "created": _moment(workflow.created_at),
        "started": _moment(workflow.started_at),
        "finished": _moment(workflow.finished_at),
        "took": _span(workflow.started_at, workflow.finished_at),
        "executor": workflow.executor or "",
        "attempts": str(workflow.attempts or ""),
        "parent": workflow.parent or "",
        "error": workflow.error or "",
        "attributes": "" if workflow.attributes is None else to_json(workflow.attributes),
    }
    return {key: value for key, value in facts.items() if value}


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _span(begun: datetime | None, ended: datetime | None) -> str:
    """How long it took: 12 ms, 3.2 s, 4:05 min, 2 days, 3:00 h."""
    if begun is None or ended is None:
        return ""
    span = ended - begun
    seconds = span.total_seconds()
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else str(span).partition(".")[0]
