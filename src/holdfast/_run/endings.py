"""How a run comes to its end in this process: its code is run, and what became of it is made a record.

A workflow returns, raises, is cancelled, or goes on under the same id as another execution (`continue_as`).
A run that was stopped, or whose code does not match its journal, has no outcome here.
"""

from typing import Any

from holdfast._observe import logger
from holdfast._run.run import Run, mismatch
from holdfast._store.commits import Continue, End
from holdfast.errors import PayloadCodecError, PayloadError
from holdfast.types import Status

Ending = End | Continue


class Continuation(BaseException):
    """What `continue_as` raises, so that the function ends there; `input` is the encoded call.

    Neither an `Exception` nor a `CancelledError`: ordinary handlers let it pass.
    """

    def __init__(self, name: str, input: bytes) -> None:
        super().__init__(name)
        self.name: str = name
        self.input: bytes = input


async def live_out(run: Run, data: bytes) -> Ending | None:
    """Runs the workflow's code to its end; None if it has no outcome here."""
    # Ten thousand workflows may wait in here: one frame between the task and their code, no more.
    if run.cancelling and not run.journal:
        return cancelled(run)
    value: object = None
    failure: BaseException | None = None
    try:
        args, kwargs = _arguments(run, data)
        value = await run.definition.fn(*args, **kwargs)
    except (KeyboardInterrupt, SystemExit):
        raise
    except PayloadCodecError as error:
        run.park_unread(error)
    except BaseException as error:
        failure = error
    if run.stopped or run.over:
        return None
    # Of calls that are made and wait for their turn nobody took notice the first time either.
    if run.turns.unmade is not None and not run.cancelling:
        run.park(mismatch(run, run.journal[run.turns.unmade], "the end of the workflow"))
        return None
    try:
        return cancelled(run) if run.cancelling else _ending(run, value, failure)
    except PayloadCodecError as error:
        run.park_unread(error)
        return None


def _arguments(run: Run, data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    engine, definition = run.executor.engine, run.definition
    context = engine.context(run.origin or run.workflow_id, "input", definition.name)
    return engine.codec.decode_call(data, definition.parameters, context)


def _ending(run: Run, value: object, failure: BaseException | None) -> Ending:
    engine = run.executor.engine
    if isinstance(failure, BaseExceptionGroup):
        # A task group wraps what leaves its block; whatever else has failed in it counts more.
        _, others = failure.split(Continuation)
        failure = others or _first(failure)
    if isinstance(failure, Continuation):
        return Continue(owner=run.owner, name=failure.name, input=failure.input)
    if failure is None:
        try:
            output = engine.codec.encode(value, engine.context(run.workflow_id, "output"))
        except PayloadCodecError:
            raise
        except PayloadError as error:
            failure = error
        else:
            return End(owner=run.owner, status=Status.SUCCESS.code, output=output)
    return failed(run, failure)


def _first(failure: BaseException) -> BaseException:
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


def failed(run: Run, error: BaseException) -> End:
    """The workflow ends with an error."""
    engine = run.executor.engine
    output = engine.codec.encode_error(error, engine.context(run.workflow_id, "error"))
    return End(owner=run.owner, status=Status.ERROR.code, output=output)


def cancelled(run: Run) -> End:
    """The workflow ends as cancelled; by its own timeout, if it has a cause [W10]."""
    engine = run.executor.engine
    output = None
    if run.cause is not None:
        try:
            output = engine.codec.encode_error(run.cause, engine.context(run.workflow_id, "error"))
        except PayloadCodecError as error:
            logger.error("workflow %r is cancelled without its cause: %s", run.workflow_id, error)
    return End(owner=run.owner, status=Status.CANCELLED.code, output=output)
