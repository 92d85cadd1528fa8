"""Messages: durable, first in first out per workflow and topic, each taken by exactly one recv.

A recv takes the oldest message and records the call in one commit. How several that wait at once keep out of
each other's way is the mailroom's.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar, overload

import msgspec

from holdfast import _keys
from holdfast._codec import check_type
from holdfast._engine.engine import Engine
from holdfast._primitives import requests
from holdfast._primitives.channels import Channel, name_and_type
from holdfast._primitives.effects import effect
from holdfast._primitives.mailroom import Place, give_back
from holdfast._primitives.requests import Misfit, Request, Requests
from holdfast._primitives.sending import SendMessage, check_sent, send_outside
from holdfast._run.context import current_branch
from holdfast._run.operation import Operation, Wait, call
from holdfast._run.run import Run
from holdfast._store import intents
from holdfast._store.commits import Answer, Code
from holdfast._store.picks import Alternative
from holdfast.config import seconds_of
from holdfast.errors import PayloadCodecError, PayloadDecodeError, WaitTimeout
from holdfast.types import MISSING, Missing

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultedTypeVar

    A_co = DefaultedTypeVar("A_co", default=object, covariant=True)
else:
    A_co = TypeVar("A_co", covariant=True)

T = TypeVar("T")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
D = TypeVar("D")
Topics: TypeAlias = "str | Topic[Any, Any] | Sequence[str | Topic[Any, Any]] | None"
NO_TOPIC = ""
INSTEAD = "from outside, send with Runtime.send, Client.send or Handle.send"


class Topic(Channel[T], Generic[T, A_co]):
    """A typed name for durable messages to a workflow; `Topic[Q, A]` if a message may ask, and be answered
    with an A.

    Example:
        >>> payments = Topic[int]("payment")
        >>> payments
        Topic[int]('payment')
        >>> Topic[int, str]("quote")
        Topic[int, str]('quote')
    """

    __slots__ = ()
    noun = "topic"

    if not TYPE_CHECKING:

        def __class_getitem__(cls, types: Any) -> Any:
            """Only type variables of Python 3.13 have defaults."""
            return super().__class_getitem__(types if isinstance(types, tuple) else (types, Any))

    @overload
    def recv(self, *, timeout: float | timedelta | None = None) -> Wait[T]: ...
    @overload
    def recv(self, *, timeout: float | timedelta | None = None, default: D) -> Wait[T | D]: ...
    def recv(self, *, timeout: float | timedelta | None = None, default: object = MISSING) -> Wait[Any]:
        """Takes the next message of this topic; see `holdfast.recv`."""
        return recv(self, timeout=timeout, default=default)

    def send(self, workflow_id: str, value: T, key: str | None = None) -> Wait[None]:
        """Sends a message of this topic from a workflow or a step; see `holdfast.send`."""
        return send(workflow_id, value, self, key=key)

    def __aiter__(self) -> AsyncIterator[T]:
        """Every message of this topic as it comes, in a workflow; never ends by itself."""
        return Inbox(self)

    def ask(self, workflow_id: str, value: T, *, timeout: float | timedelta | None = None) -> Wait[A_co]:
        """Sends a request of this topic, and waits for the reply; from a workflow or a step.

        In a workflow it is one durable call: asked exactly once, and a replay has the same reply. From a step
        it is asked anew each time.

        Raises:
            NotInWorkflow: outside a workflow; there, use `Runtime.ask`, which says what else is raised.

        Example:
            >>> async def shop(clerk: str) -> float:
            ...     return await Topic[str, float]("price").ask(clerk, "a chair", timeout=60)
        """
        return requests.ask(workflow_id, self, value, timeout)

    def requests(self) -> AsyncIterator[Request[T, A_co]]:
        """Every message of this topic as it comes, to be answered; in a workflow, never ends by itself.

        A message that was sent and not asked is given too, and its answer goes nowhere. What does not decode
        to the topic's type is not given: the asker gets the `PayloadDecodeError`, so that no asker can end
        this loop; of one that was sent, the log is told.

        Raises (when iterated):
            NotInWorkflow: outside a workflow, or inside a step.

        Example:
            >>> async def clerk() -> None:
            ...     async for request in Topic[str, float]("price").requests():
            ...         await request.reply(len(request.value) * 9.5)
        """
        return Requests(self.name, lambda: RecvRequest(self.name, (self.name,), (self.type,), None, MISSING))


@overload
def recv(topic: Topic[T, Any], *, timeout: float | timedelta | None = None) -> Wait[T]: ...
@overload
def recv(topic: Topic[T, Any], *, timeout: float | timedelta | None = None, default: D) -> Wait[T | D]: ...
@overload
def recv(topic: str | None = None, *, timeout: float | timedelta | None = None, type: type[T]) -> Wait[T]: ...
@overload
def recv(
    topic: str | None = None, *, timeout: float | timedelta | None = None, default: D, type: type[T]
) -> Wait[T | D]: ...
@overload
def recv(
    topic: tuple[Topic[T, Any], Topic[T2, Any]], *, timeout: float | timedelta | None = None
) -> Wait[T | T2]: ...
@overload
def recv(
    topic: tuple[Topic[T, Any], Topic[T2, Any]], *, timeout: float | timedelta | None = None, default: D
) -> Wait[T | T2 | D]: ...
@overload
def recv(
    topic: tuple[Topic[T, Any], Topic[T2, Any], Topic[T3, Any]], *, timeout: float | timedelta | None = None
) -> Wait[T | T2 | T3]: ...
@overload
def recv(
    topic: tuple[Topic[T, Any], Topic[T2, Any], Topic[T3, Any]],
    *,
    timeout: float | timedelta | None = None,
    default: D,
) -> Wait[T | T2 | T3 | D]: ...
@overload
def recv(topic: Sequence[Topic[T, Any]], *, timeout: float | timedelta | None = None) -> Wait[T]: ...
@overload
def recv(
    topic: Sequence[Topic[T, Any]], *, timeout: float | timedelta | None = None, default: D
) -> Wait[T | D]: ...
@overload
def recv(
    topic: Topics = None,
    *,
    timeout: float | timedelta | None = None,
    default: object = ...,
    type: object = ...,
) -> Wait[Any]: ...
def recv(
    topic: Topics = None,
    *,
    timeout: float | timedelta | None = None,
    default: object = MISSING,
    type: object = Any,
) -> Wait[Any]:
    """Takes the oldest message of a topic; waits for one if there is none. Only in a workflow.

    Without a topic, messages sent without one. Given several topics, the oldest message of all of them,
    decoded by the type of the topic that it came with; as a tuple they are typed as a union. Taking and
    recording are one commit [M4]. `timeout` is in seconds, by the database's clock, and counts on through
    crashes [W9]; 0 looks once; None waits for ever [M6].

    Raises:
        WaitTimeout: if no message came in time and there is no `default`.
        PayloadDecodeError: if the message does not fit the type; it is consumed all the same [M6].
        NotInWorkflow: outside a workflow, or inside a step.
        ValueError: if several topics are none at all.

    Example:
        >>> async def checkout() -> str:
        ...     return await recv("payment", timeout=60, default="expired", type=str)
    """
    return call(current_branch("recv", INSTEAD), _recv_of(topic, seconds_of(timeout), default, type))


def _recv_of(topic: Topics, timeout: float | None, default: object, type: object) -> "Recv":
    if isinstance(topic, (str, bytes)) or not isinstance(topic, Sequence):
        name, kind = _topic_and_type(topic, type)
        return Recv(name, (name,), (kind,), timeout, default)
    found = [_topic_and_type(one, type) for one in topic]
    if not found:
        raise ValueError("recv waits for one topic at least")
    topics = tuple(name for name, _ in found)
    types = tuple(kind for _, kind in found)
    return Recv(msgspec.json.encode(topics).decode(), topics, types, timeout, default)


def _topic_and_type(topic: str | Topic[Any, Any] | None, type: object) -> tuple[str, Any]:
    if topic is None:
        check_type(type)
        return NO_TOPIC, type
    return name_and_type(topic, "topic", type)


class Recv(Operation[Any]):
    """The next message of a topic, or of several: then its stored name is the list of them."""

    __slots__ = ("default", "name", "timeout", "topics", "types")
    kind: ClassVar[str] = "recv"

    def __init__(
        self,
        name: str,
        topics: tuple[str, ...],
        types: tuple[object, ...],
        timeout: float | None,
        default: object,
    ) -> None:
        self.name = name
        self.topics = topics
        self.types = types
        self.timeout = timeout
        self.default = default

    def alternative(self, run: Run, step_id: str) -> Alternative:
        return Alternative(
            kind=self.kind, names=self.topics, timeout=self.timeout, keys=self._wake_keys(run.workflow_id)
        )

    def waits(self, run: Run, step_id: str) -> bool:
        return True

    async def perform(self, run: Run, step_id: str) -> Answer:
        wanted = None
        if self.name != self.topics[0]:
            wanted = (Alternative(kind=self.kind, names=self.topics),)
        keys = self._wake_keys(run.workflow_id)
        with Place(run, step_id, self.kind, self.name, self.timeout, self.topics, keys, wanted) as place:
            return await place.take()

    async def undo(self, run: Run, step_id: str, answer: Answer) -> None:
        if answer.code is Code.VALUE:
            await give_back(run, step_id, self._wake_keys(run.workflow_id))

    def conclude(self, run: Run, answer: Answer) -> Any:
        if answer.code is Code.VALUE:
            assert answer.payload is not None
            number = answer.choice or 0
            context = run.context(answer, "message", self.topics[number])
            return run.executor.engine.codec.decode(answer.payload, self.types[number], context)
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)
        if self.default is not MISSING:
            return self.default
        which = f"topic {self.name!r}" if len(self.topics) == 1 else f"any of the topics {self.name}"
        raise WaitTimeout(f"workflow {run.workflow_id!r} received no message on {which} in time")

    def _wake_keys(self, workflow_id: str) -> tuple[str, ...]:
        return tuple(_keys.wake_key("message", workflow_id, topic) for topic in self.topics)


class Inbox(AsyncIterator[T], Generic[T]):
    """The messages of a topic. No generator: of one that is left early, the loop makes a task to close it,
    which a workflow would count as a birth, sooner or later than its replay does.
    """

    __slots__ = ("_topic",)

    def __init__(self, topic: Topic[T, Any]) -> None:
        self._topic = topic

    async def __anext__(self) -> T:
        return await self._topic.recv()


class RecvRequest(Recv):
    """The next message of a topic, as a request; the same call in a journal as a recv."""

    __slots__ = ()

    def conclude(self, run: Run, answer: Answer) -> Any:
        try:
            value = super().conclude(run, answer)
        except PayloadCodecError:
            raise  # this process is wrong, not the message
        except PayloadDecodeError as error:
            if answer.code is not Code.VALUE:
                raise
            value = Misfit(error)
        return Request(run.workflow_id, self.name, answer.note, value)


def send(
    workflow_id: str, message: object, topic: "str | Topic[Any, Any] | None" = None, *, key: str | None = None
) -> Wait[None]:
    """Sends a message to a workflow, from a workflow (exactly once) or from a step (at least once) [M3].

    When it returns, the message is committed, and its destination will be able to receive it [M1]. With
    `key`, a second message of the same key to the same destination is dropped silently, whatever it holds.

    Raises:
        WorkflowNotFound: if there is no such workflow [M2].
        WorkflowFinished: if it has ended (SUCCESS or ERROR) [M2].
        InvalidName: if the id, the topic or the key cannot be one [K1].
        PayloadNotSerializable, PayloadTooLarge: before anything is written [K2].
        NotInWorkflow: outside a workflow; there, use `Runtime.send`.

    Example:
        >>> async def notify(customer: str) -> None:
        ...     await send(customer, {"state": "paid"}, "news", key="paid")
    """
    to = _keys.check_workflow_id(workflow_id)
    name = NO_TOPIC if topic is None else name_and_type(topic, "topic", Any)[0]
    if key is not None:
        _keys.check_name(key, "key")
    return effect(SendMessage(to, name, message, key), "send", INSTEAD)


async def send_from_outside(
    engine: Engine,
    workflow_id: str,
    message: object,
    topic: "str | Topic[Any, Any] | None",
    key: str | None,
    conn: object | None = None,
) -> None:
    """Sends a message from outside any workflow: at least once by nature, exactly once with a key [M3]; on a
    caller's own connection, exactly once if the caller commits.
    """
    to = _keys.check_workflow_id(workflow_id)
    name = NO_TOPIC if topic is None else name_and_type(topic, "topic", Any)[0]
    if key is not None:
        _keys.check_name(key, "key")
    payload = engine.codec.encode(message, engine.context(to, "message", name))
    if conn is not None:
        connection = await engine.callers.admit(conn)
        code = await intents.send(connection, engine.sql, to, name, payload, key)
        check_sent(to, Answer(Code(code)))
        return
    check_sent(to, await send_outside(engine, to, name, payload, key=key))


__all__ = ["MISSING", "Missing", "Topic", "recv", "send", "send_from_outside"]
