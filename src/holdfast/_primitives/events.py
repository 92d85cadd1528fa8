"""Events: key-values that a workflow publishes and others await. Every value keeps its revision; readers get
the latest.
"""

from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar, overload

from holdfast import _clock, _keys
from holdfast._engine.engine import Engine
from holdfast._observe import point
from holdfast._primitives.channels import Channel, name_and_type
from holdfast._primitives.effects import Effect, effect
from holdfast._primitives.recorded import RecordedWatch
from holdfast._primitives.watching import LiveWatch, Watch, bells_of
from holdfast._run.context import Branch, StepScope, current_scope
from holdfast._run.operation import Operation, Wait, call, claim
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Claim, Code, SetEvent
from holdfast._store.events import list_events
from holdfast._store.looks import EventLook
from holdfast._store.picks import Alternative
from holdfast.config import seconds_of
from holdfast.errors import WaitTimeout, WorkflowFinished
from holdfast.types import MISSING

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
D = TypeVar("D")
INSTEAD = "from outside, use Runtime.get_event, Client.get_event or Handle.get"


class Event(Channel[T_co], Generic[T_co]):
    """A typed name for a value that a workflow publishes.

    Example:
        >>> pay_url = Event[str]("pay_url")
        >>> pay_url
        Event[str]('pay_url')
    """

    __slots__ = ()
    noun = "event key"

    def set(self, value: T_co) -> Wait[None]:  # type: ignore[misc]  # see Channel
        """Publishes or replaces the value; see `holdfast.set_event`."""
        return set_event(self, value)

    @overload
    def get(self, workflow_id: str, *, timeout: float | timedelta | None = None) -> Wait[T_co]: ...
    @overload
    def get(
        self, workflow_id: str, *, timeout: float | timedelta | None = None, default: D
    ) -> Wait[T_co | D]: ...
    def get(
        self, workflow_id: str, *, timeout: float | timedelta | None = None, default: object = MISSING
    ) -> Wait[Any]:
        """The value of another workflow's event; see `holdfast.get_event`."""
        return get_event(workflow_id, self, timeout=timeout, default=default)

    def watch(self, workflow_id: str) -> Watch[T_co]:
        """The value now, then every change; see `holdfast.watch_event`."""
        return watch_event(workflow_id, self)


def set_event(key: "str | Event[Any]", value: object) -> Wait[None]:
    """Publishes a value under a key of this workflow, or replaces it [E1]. In a workflow: exactly once; in a
    step: at least once.

    Raises:
        InvalidName: if the key cannot be one [K1].
        PayloadNotSerializable, PayloadTooLarge: before anything is written [K2].
        NotInWorkflow: outside a workflow.

    Example:
        >>> async def checkout() -> None:
        ...     await set_event("pay_url", "https://pay.example/17")
    """
    name, _ = name_and_type(key, "event key", Any)
    return effect(PublishEvent(name, value), "set_event", "only a workflow publishes events")


class PublishEvent(Effect):
    """A new value of an event."""

    __slots__ = ("_payload", "name", "value")
    kind: ClassVar[str] = "set_event"

    def __init__(self, key: str, value: object) -> None:
        self.name = key
        self.value = value

    def prepare(self, run: Run, step_id: str) -> None:
        engine = run.executor.engine
        self._payload = engine.codec.encode(self.value, engine.context(run.workflow_id, "event", self.name))

    def before_commit(self) -> None:
        point("set.before_commit")

    def after_commit(self) -> None:
        point("set.after_commit")

    def record(self, run: Run, step_id: str, attempt: int = 1) -> SetEvent:
        return SetEvent(
            owner=run.owner,
            step_id=step_id,
            kind=self.kind,
            name=self.name,
            key=self.name,
            payload=self._payload,
        )


@overload
def get_event(workflow_id: str, key: Event[T], *, timeout: float | timedelta | None = None) -> Wait[T]: ...
@overload
def get_event(
    workflow_id: str, key: Event[T], *, timeout: float | timedelta | None = None, default: D
) -> Wait[T | D]: ...
@overload
def get_event(
    workflow_id: str, key: str, *, timeout: float | timedelta | None = None, type: type[T]
) -> Wait[T]: ...
@overload
def get_event(
    workflow_id: str, key: str, *, timeout: float | timedelta | None = None, default: D, type: type[T]
) -> Wait[T | D]: ...
@overload
def get_event(
    workflow_id: str,
    key: str | Event[Any],
    *,
    timeout: float | timedelta | None = None,
    default: object = ...,
    type: object = ...,
) -> Wait[Any]: ...
def get_event(
    workflow_id: str,
    key: str | Event[Any],
    *,
    timeout: float | timedelta | None = None,
    default: object = MISSING,
    type: object = Any,
) -> Wait[Any]:
    """The latest value that a workflow has published under a key; waits until there is one [E2].

    In a workflow the value, or the timeout, is recorded: a replay gets the same, even if the event has
    changed since [E3]. In a step it is read anew each time. `timeout` is in seconds; the workflow of this id
    need not exist yet.

    Raises:
        WaitTimeout: if there was no value in time and there is no `default`.
        WorkflowFinished: if the workflow is no longer active and has not set it, `default` or not.
        PayloadDecodeError: if the value does not fit the type.
        NotInWorkflow: outside a workflow; there, use `Runtime.get_event`.

    Example:
        >>> async def follow(other: str) -> str:
        ...     return await get_event(other, "pay_url", timeout=30, type=str)
    """
    target = _keys.check_workflow_id(workflow_id)
    name, kind = name_and_type(key, "event key", type)
    seconds = seconds_of(timeout)
    found = current_scope("get_event", INSTEAD)
    if isinstance(found, Branch):
        return call(found, GetEvent(target, name, seconds, default, kind))
    engine = found.run.executor.engine
    return Wait(lambda: get_event_outside(engine, target, name, seconds, default, kind))


class GetEvent(Operation[Any]):
    """The value of an event as this workflow saw it."""

    __slots__ = ("default", "name", "target", "timeout", "type")
    kind: ClassVar[str] = "get_event"

    def __init__(self, target: str, key: str, timeout: float | None, default: object, type: object) -> None:
        self.target = target
        self.name = key
        self.timeout = timeout
        self.default = default
        self.type = type

    def alternative(self, run: Run, step_id: str) -> Alternative:
        return Alternative(
            kind=self.kind,
            names=(self.name,),
            target=self.target,
            timeout=self.timeout,
            keys=bells_of(self.target, self.name),
        )

    async def perform(self, run: Run, step_id: str) -> Answer:
        claimed = Claim(
            step_id=step_id, kind=self.kind, name=self.name, target=self.target, timeout=self.timeout
        )
        answer = await claim(run, claimed, bells_of(self.target, self.name))
        return Answer(answer.code, answer.payload, origin=answer.note)

    def conclude(self, run: Run, answer: Answer) -> Any:
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)
        if answer.code is Code.FINISHED:
            raise WorkflowFinished(self.target)
        if answer.code is Code.TIMEOUT:
            return default_or_timeout(self.target, self.name, self.default)
        encoded_for = answer.origin or answer.note or self.target
        return _decode(run.executor.engine, encoded_for, self.name, answer.payload, self.type)


def _decode(engine: Engine, workflow_id: str, key: str, payload: bytes | None, type: object) -> Any:
    assert payload is not None
    return engine.codec.decode(payload, type, engine.context(workflow_id, "event", key))


def default_or_timeout(workflow_id: str, key: str, default: object) -> Any:
    """What a wait for an event ends with when its time is over."""
    if default is not MISSING:
        return default
    raise WaitTimeout(f"workflow {workflow_id!r} did not set event {key!r} in time")


async def get_event_outside(
    engine: Engine, workflow_id: str, key: str, timeout: float | None, default: object, type: object
) -> Any:
    """The latest value, waited for from outside a workflow or from a step: nothing is recorded."""
    look = EventLook(workflow_id, key)
    deadline = None if timeout is None else _clock.monotonic() + timeout
    news = await engine.waiters.until(
        bells_of(workflow_id, key), lambda: engine.lookups.look(look), deadline=deadline
    )
    if news is None:
        return default_or_timeout(workflow_id, key, default)
    if news.revision is None:
        raise WorkflowFinished(workflow_id)
    return _decode(engine, news.origin or workflow_id, key, news.payload, type)


@overload
def watch_event(workflow_id: str, key: Event[T]) -> Watch[T]: ...
@overload
def watch_event(workflow_id: str, key: str, type: type[T]) -> Watch[T]: ...
@overload
def watch_event(workflow_id: str, key: str | Event[Any], type: object = ...) -> Watch[Any]: ...
def watch_event(workflow_id: str, key: str | Event[Any], type: object = Any) -> Watch[Any]:
    """The value of an event now, then every change, in the order of revisions.

    A slow watcher skips to the latest value and never goes back. It ends when the workflow is no longer
    active, after the last value [E5]; the workflow of this id need not exist yet. In workflow code each value
    is recorded, by a durable call where the loop asks for it, so that a replay sees the same; `anext(watch)`
    gives it as a `Wait`. One task at a time may watch. In a step nothing is recorded.

    Raises:
        NotInWorkflow: outside a workflow and its steps; there, use `Runtime.watch_event`.

    Example:
        >>> async def follow(other: str) -> None:
        ...     async for state in watch_event(other, "state", str):
        ...         await set_event("seen", state)
    """
    found = current_scope(
        "watch_event", "from outside, use Runtime.watch_event, Client.watch_event or Handle.watch"
    )
    engine = found.run.executor.engine
    if isinstance(found, StepScope):
        return watch(engine, workflow_id, key, type)
    name, kind = name_and_type(key, "event key", type)
    return RecordedWatch(engine, _keys.check_workflow_id(workflow_id), name, kind)


def watch(engine: Engine, workflow_id: str, key: "str | Event[Any]", type: object) -> Watch[Any]:
    """The values of an event as they come, from outside a workflow or from a step. No I/O until iterated."""
    name, kind = name_and_type(key, "event key", type)
    return LiveWatch(engine, _keys.check_workflow_id(workflow_id), name, kind)


async def all_events(engine: Engine, workflow_id: str, *, history: bool) -> dict[str, Any]:
    """Every event of a workflow: the latest values, or all of them as `(revision, value)`."""
    _keys.check_workflow_id(workflow_id)
    rows = await engine.ask(
        lambda connection: list_events(connection, engine.sql, workflow_id, history=history)
    )
    values: dict[str, Any] = {}
    for row in rows:
        value = _decode(engine, row.origin or workflow_id, row.key, row.payload, Any)
        if history:
            values.setdefault(row.key, []).append((row.revision, value))
        else:
            values[row.key] = value
    return values


__all__ = [
    "Event",
    "all_events",
    "get_event",
    "get_event_outside",
    "set_event",
    "watch",
    "watch_event",
]
