"""Workflows that live for ever: an execution that ends so that the next goes on in its place."""

from typing import Any, NoReturn

from holdfast._primitives.workflows import Call
from holdfast._run.context import current_branch
from holdfast._run.endings import Continuation
from holdfast.errors import NotInWorkflow


def continue_as(call: Call[Any], /) -> NoReturn:
    """Ends this execution here; the workflow goes on under the same id as `call`, with an empty journal.

    For workflows that live long, whose journal would grow without end. Messages not yet taken stay in the
    mailbox, events and streams go on, children live on, `result()` waits for the last execution. It leaves
    the function as an exception that `except Exception` lets pass: `finally` blocks run, tasks left over are
    cancelled. The next execution has its own `timeout`, and may be another workflow. If the workflow has been
    asked to end, it ends.

    Raises:
        TypeError: if it is not given a call of a workflow.
        PayloadNotSerializable, PayloadTooLarge: if the arguments cannot be stored.
        NotInWorkflow: outside a workflow, inside a step, and in a task that the workflow has made.

    Example:
        >>> async def subscription(month: int, again: Call[None]) -> None:
        ...     if month < 12:
        ...         continue_as(again)
    """
    if not isinstance(call, Call):
        raise TypeError(
            "continue_as takes a call of a workflow, such as continue_as(subscription(month + 1))"
        )
    branch = current_branch("continue_as", "from outside, start the workflow")
    run = branch.run
    if branch.prefix != run.prefix:
        raise NotInWorkflow(
            "continue_as ends the workflow function; call it there, not in a task of the workflow"
        )
    run.check()
    engine = run.executor.engine
    context = engine.context(run.workflow_id, "input", call.name)
    raise Continuation(call.name, engine.codec.encode_call(call.args, call.kwargs, context))
