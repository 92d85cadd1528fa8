"""Handles: a workflow's id and the type of its result, with everything one may ask of it.

The same handle works from outside, where nothing is recorded, and inside a workflow, where asking is a
durable call.
"""

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar, overload

from holdfast import _clock, _keys
from holdfast._engine.engine import Engine
from holdfast._primitives import events, messages, requests, streams
from holdfast._primitives.channels import name_and_type
from holdfast._primitives.events import Event
from holdfast._primitives.managed import AskStatus, Cancel, Fork, Resume
from holdfast._primitives.managing import cancel_workflow, fork_workflow, resume_workflow, status_of
from holdfast._primitives.messages import Topic
from holdfast._primitives.reading import Reader, open_reader, span_of
from holdfast._primitives.streams import Stream
from holdfast._primitives.watching import Watch
from holdfast._run.context import Branch, StepScope, scope
from holdfast._run.operation import Operation, call, claim
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Claim, Code
from holdfast._store.looks import Ended, ResultLook
from holdfast._store.picks import Alternative
from holdfast.config import seconds_of
from holdfast.errors import (
    NotInWorkflow,
    WaitTimeout,
    WorkflowCancelled,
    WorkflowFailed,
    WorkflowNotFound,
    WorkflowQuarantined,
)
from holdfast.types import MISSING, Status, WorkflowStatus

T = TypeVar("T")
A = TypeVar("A")
D = TypeVar("D")
R_co = TypeVar("R_co", covariant=True)


class Handle(Generic[R_co]):
    """One workflow, by its id. Making one does no I/O.

    Cancelling or timing out an await on it stops the waiting, never the workflow.
    """

    __slots__ = ("_engine", "_type", "id")

    def __init__(self, engine: Engine, workflow_id: str, type: object) -> None:
        self.id: str = _keys.check_workflow_id(workflow_id)
        self._engine = engine
        self._type = type

    def result(self, timeout: float | timedelta | None = None) -> Coroutine[Any, Any, R_co]:
        """Waits for the workflow's end and gives its result [W15]; recorded inside a workflow [W8].

        Raises:
            WorkflowFailed: if it raised; the cause is its exception.
            WorkflowCancelled, WorkflowQuarantined: if it ended that way.
            WorkflowNotFound: if there is no workflow of this id.
            WaitTimeout: if it did not end within `timeout` seconds; it goes on.
        """
        seconds = seconds_of(timeout)
        found = self._scope()
        if isinstance(found, Branch):
            return call(found, AwaitResult(self.id, self._type, seconds))
        return result_outside(self._engine, self.id, self._type, seconds)

    def status(self) -> Coroutine[Any, Any, WorkflowStatus]:
        """How the workflow stands now; recorded inside a workflow.

        Raises:
            WorkflowNotFound: if there is none of this id.
        """
        found = self._scope()
        if isinstance(found, Branch):
            return call(found, AskStatus(self.id))
        return status_of(self._engine, self.id)

    def cancel(self) -> Coroutine[Any, Any, bool]:
        """Asks the workflow and its children to end [W10]; was it active? Recorded inside a workflow.

        Raises:
            WorkflowNotFound: if there is none of this id.
        """
        found = self._scope()
        if isinstance(found, Branch):
            return call(found, Cancel(self.id))
        return cancel_workflow(self._engine, self.id)

    def resume(self) -> Coroutine[Any, Any, bool]:
        """Lets the workflow go on from its journal after it has ended; see `Runtime.resume`. False: it was
        active anyway. Recorded inside a workflow.

        Raises:
            WorkflowNotFound: if there is none of this id.
            WorkflowConflict: if it has ended with a result, or with an error of its own.
        """
        found = self._scope()
        if isinstance(found, Branch):
            return call(found, Resume(self.id))
        return resume_workflow(self._engine, self.id)

    def fork(self, *, from_step: str, id: str | None = None) -> Coroutine[Any, Any, "Handle[R_co]"]:
        """Makes a new workflow that does everything again from a step on; see `Runtime.fork`. Recorded inside
        a workflow.

        Raises:
            WorkflowNotFound: if there is none of this id.
            LookupError: if its journal has no such step.
            WorkflowConflict: if `id` belongs to another workflow.
        """
        found = self._scope()
        if isinstance(found, Branch):
            return call(found, Fork(self.id, from_step, id, self._of))
        return self._fork(from_step, id)

    async def _fork(self, from_step: str, id: str | None) -> "Handle[R_co]":
        return self._of(await fork_workflow(self._engine, self.id, from_step, id))

    def _of(self, workflow_id: str) -> "Handle[R_co]":
        """A handle of another workflow with such a result."""
        return Handle(self._engine, workflow_id, self._type)

    @overload
    def send(self, topic: Topic[T, Any], value: T, key: str | None = None) -> Coroutine[Any, Any, None]: ...
    @overload
    def send(self, topic: str | None, value: object, key: str | None = None) -> Coroutine[Any, Any, None]: ...
    def send(
        self, topic: str | Topic[Any, Any] | None, value: object, key: str | None = None
    ) -> Coroutine[Any, Any, None]:
        """Sends it a message; see `Runtime.send`, and `holdfast.send` inside a workflow."""
        if self._scope() is not None:
            return messages.send(self.id, value, topic, key=key)
        return messages.send_from_outside(self._engine, self.id, value, topic, key)

    @overload
    def ask(
        self, topic: Topic[T, A], value: T, *, timeout: float | timedelta | None = None
    ) -> Coroutine[Any, Any, A]: ...
    @overload
    def ask(
        self, topic: str, value: object, *, timeout: float | timedelta | None = None, type: type[T]
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def ask(
        self, topic: str, value: object, *, timeout: float | timedelta | None = None, type: object = ...
    ) -> Coroutine[Any, Any, Any]: ...
    def ask(
        self,
        topic: str | Topic[Any, Any],
        value: object,
        *,
        timeout: float | timedelta | None = None,
        type: object = Any,
    ) -> Coroutine[Any, Any, Any]:
        """Asks it, and waits for its reply; see `Runtime.ask`, and `Topic.ask` inside a workflow."""
        if self._scope() is not None:
            return requests.ask(self.id, topic, value, timeout, type)
        return requests.ask_from_outside(self._engine, self.id, topic, value, timeout, type)

    @overload
    def get(self, event: Event[T], timeout: float | timedelta | None = None) -> Coroutine[Any, Any, T]: ...
    @overload
    def get(
        self, event: Event[T], timeout: float | timedelta | None = None, *, default: D
    ) -> Coroutine[Any, Any, T | D]: ...
    @overload
    def get(
        self, event: str, timeout: float | timedelta | None = None, *, type: type[T]
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def get(
        self, event: str, timeout: float | timedelta | None = None, *, default: D, type: type[T]
    ) -> Coroutine[Any, Any, T | D]: ...
    @overload
    def get(
        self,
        event: str,
        timeout: float | timedelta | None = None,
        *,
        default: object = ...,
        type: object = ...,
    ) -> Coroutine[Any, Any, Any]: ...
    def get(
        self,
        event: str | Event[Any],
        timeout: float | timedelta | None = None,
        *,
        default: object = MISSING,
        type: object = Any,
    ) -> Coroutine[Any, Any, Any]:
        """Awaits its event; see `Runtime.get_event`, and `holdfast.get_event` inside a workflow."""
        seconds = seconds_of(timeout)
        if self._scope() is not None:
            return events.get_event(self.id, event, timeout=seconds, default=default, type=type)
        name, kind = name_and_type(event, "event key", type)
        return events.get_event_outside(self._engine, self.id, name, seconds, default, kind)

    @overload
    def watch(self, event: Event[T]) -> Watch[T]: ...
    @overload
    def watch(self, event: str, type: type[T]) -> Watch[T]: ...
    @overload
    def watch(self, event: str, type: object = ...) -> Watch[Any]: ...
    def watch(self, event: str | Event[Any], type: object = Any) -> Watch[Any]:
        """Its event's value now, then every change; see `Runtime.watch_event`, and `holdfast.watch_event`
        inside a workflow.
        """
        if self._scope() is not None:
            return events.watch_event(self.id, event, type)
        return events.watch(self._engine, self.id, event, type)

    @overload
    def read(
        self,
        stream: Stream[T],
        *,
        after: int | None = None,
        last: int | None = None,
        follow: bool = True,
    ) -> Reader[T]: ...
    @overload
    def read(
        self,
        stream: str,
        *,
        after: int | None = None,
        last: int | None = None,
        follow: bool = True,
        type: type[T],
    ) -> Reader[T]: ...
    @overload
    def read(
        self,
        stream: str,
        *,
        after: int | None = None,
        last: int | None = None,
        follow: bool = True,
        type: object = ...,
    ) -> Reader[Any]: ...
    def read(
        self,
        stream: str | Stream[Any],
        *,
        after: int | None = None,
        last: int | None = None,
        follow: bool = True,
        type: object = Any,
    ) -> Reader[Any]:
        """Reads its stream; see `Runtime.read_stream`, and `holdfast.read_stream` inside a workflow."""
        if self._scope() is not None:
            return streams.read_stream(self.id, stream, after=after, last=last, follow=follow, type=type)
        return open_reader(self._engine, self.id, stream, span_of(after, last, follow), type)

    def _scope(self) -> Branch | StepScope | None:
        """Where in a workflow the running code is, if the handle leads to the database of that workflow.

        Raises:
            NotInWorkflow: from workflow code, if it does not: nothing could be recorded.
        """
        found = scope.get()
        if found is None or self._engine.same_database(found.run.executor.engine):
            return found
        if isinstance(found, StepScope):
            return None  # for a step another database is the outside world
        raise NotInWorkflow(
            f"{self!r} belongs to a runtime or client of another database than this workflow's: use it in a "
            "step"
        )

    def __repr__(self) -> str:
        return f"<handle of workflow {self.id!r}>"


class AwaitResult(Operation[Any]):
    """The result of another workflow as this workflow saw it."""

    __slots__ = ("target", "timeout", "type")
    kind: ClassVar[str] = "result"
    name = ""

    def __init__(self, target: str, type: object, timeout: float | None) -> None:
        self.target = target
        self.type = type
        self.timeout = timeout

    def alternative(self, run: Run, step_id: str) -> Alternative:
        keys = (_keys.wake_key("end", self.target),)
        return Alternative(kind=self.kind, target=self.target, timeout=self.timeout, keys=keys)

    async def perform(self, run: Run, step_id: str) -> Answer:
        claimed = Claim(step_id=step_id, kind=self.kind, target=self.target, timeout=self.timeout)
        return await claim(run, claimed, (_keys.wake_key("end", self.target),))

    def conclude(self, run: Run, answer: Answer) -> Any:
        return outcome_of(run.executor.engine, self.target, answer, self.type, itself=False)


_ENDS = {
    Status.SUCCESS: Code.VALUE,
    Status.ERROR: Code.ERROR,
    Status.CANCELLED: Code.CANCELLED,
    Status.QUARANTINED: Code.QUARANTINED,
}


async def result_outside(engine: Engine, workflow_id: str, type: object, timeout: float | None) -> Any:
    """Waits for a workflow's end from outside: nothing is recorded [W15]."""
    look = ResultLook(workflow_id)
    deadline = None if timeout is None else _clock.monotonic() + timeout
    key = _keys.wake_key("end", workflow_id)
    ended: Ended | None = await engine.waiters.until(
        (key,), lambda: engine.lookups.look(look), deadline=deadline
    )
    if ended is None:
        raise WaitTimeout(f"workflow {workflow_id!r} did not end in time; it goes on")
    code = Code.NOT_FOUND if ended.status is None else _ENDS[ended.status]
    return outcome_of(engine, workflow_id, Answer(code, ended.output), type, itself=False)


def outcome_of(engine: Engine, workflow_id: str, answer: Answer, type: object, *, itself: bool) -> Any:
    """A workflow's result, or its failure: as the exception that it raised (`itself`), or as WorkflowFailed
    from it.
    """
    if answer.code is Code.VALUE:
        assert answer.payload is not None
        return engine.codec.decode(answer.payload, type, engine.context(workflow_id, "output"))
    if answer.code is Code.NOT_FOUND:
        raise WorkflowNotFound(workflow_id)
    if answer.code is Code.TIMEOUT:
        raise WaitTimeout(f"workflow {workflow_id!r} did not end in time; it goes on")
    cause = None
    if answer.payload is not None:
        cause = engine.codec.decode_error(answer.payload, engine.context(workflow_id, "error"), engine.errors)
    if answer.code is Code.CANCELLED:
        raise WorkflowCancelled(workflow_id) from cause
    if answer.code is Code.QUARANTINED:
        raise WorkflowQuarantined(workflow_id) from cause
    if itself and cause is not None:
        raise cause
    raise WorkflowFailed(workflow_id) from cause
