"""Messages: durable, first in first out per workflow and topic, each taken by exactly one recv.

A recv's claim takes the oldest message and records the call in one commit. Several recvs of one workflow on
one topic share a mailbox, which claims for all that wait at once, in the order of their calls: so none
overtakes another [M7].
"""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload
from uuid import uuid4

from holdfast import _keys
from holdfast._codec import check_type
from holdfast._engine.engine import Engine
from holdfast._engine.writer import Answers
from holdfast._observe import point
from holdfast._primitives import requests
from holdfast._primitives.channels import Channel, name_and_type
from holdfast._primitives.requests import Misfit, Request, Requests
from holdfast._run.context import Branch, StepScope, current_branch, current_scope
from holdfast._run.operation import Operation, Wait, call, due_of
from holdfast._run.run import Run
from holdfast._store import intents
from holdfast._store.commits import Answer, Claim, Claims, Code, OutsideSend, Send, Undo
from holdfast.config import seconds_of
from holdfast.errors import PayloadDecodeError, WaitTimeout, WorkflowFinished, WorkflowNotFound
from holdfast.types import MISSING, Missing

if TYPE_CHECKING:
    from typing_extensions import TypeVar as DefaultedTypeVar

    A = DefaultedTypeVar("A", default=Any)
else:
    A = TypeVar("A")

T = TypeVar("T")
D = TypeVar("D")
NO_TOPIC = ""
INSTEAD = "from outside, send with Runtime.send, Client.send or Handle.send"


class Topic(Channel[T], Generic[T, A]):
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

    def send(self, workflow_id: str, value: T, *, key: str | None = None) -> Wait[None]:
        """Sends a message of this topic from a workflow or a step; see `holdfast.send`."""
        return send(workflow_id, value, self, key=key)

    def __aiter__(self) -> AsyncIterator[T]:
        """Every message of this topic as it comes, in a workflow; never ends by itself."""
        return Inbox(self)

    def ask(self, workflow_id: str, value: T, *, timeout: float | timedelta | None = None) -> Wait[A]:
        """Sends a request of this topic, and waits for the reply; from a workflow or a step [M11].

        In a workflow it is one durable call: asked exactly once, and a replay has the same reply. From a step
        it is asked anew each time.

        Raises:
            NotInWorkflow: outside a workflow; there, use `Runtime.ask`, which says what else is raised.

        Example:
            >>> async def shop(clerk: str) -> float:
            ...     return await Topic[str, float]("price").ask(clerk, "a chair", timeout=60)
        """
        return requests.ask(workflow_id, self, value, timeout)

    def requests(self) -> AsyncIterator[Request[T, A]]:
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
        return Requests(self.name, lambda: RecvRequest(self.name, None, MISSING, self.type))


@overload
def recv(topic: Topic[T], *, timeout: float | timedelta | None = None) -> Wait[T]: ...
@overload
def recv(topic: Topic[T], *, timeout: float | timedelta | None = None, default: D) -> Wait[T | D]: ...
@overload
def recv(topic: str | None = None, *, timeout: float | timedelta | None = None, type: type[T]) -> Wait[T]: ...
@overload
def recv(
    topic: str | None = None, *, timeout: float | timedelta | None = None, default: D, type: type[T]
) -> Wait[T | D]: ...
@overload
def recv(
    topic: str | None = None,
    *,
    timeout: float | timedelta | None = None,
    default: object = ...,
    type: object = ...,
) -> Wait[Any]: ...
def recv(
    topic: str | Topic[Any] | None = None,
    *,
    timeout: float | timedelta | None = None,
    default: object = MISSING,
    type: object = Any,
) -> Wait[Any]:
    """Takes the oldest message of a topic; waits for one if there is none. Only in a workflow.

    Without a topic, messages sent without one. Taking and recording are one commit [M4]. `timeout` is in
    seconds, by the database's clock, and counts on through crashes [W9]; 0 looks once; None waits for ever
    [M6].

    Raises:
        WaitTimeout: if no message came in time and there is no `default`.
        PayloadDecodeError: if the message does not fit the type; it is consumed all the same [M6].
        NotInWorkflow: outside a workflow, or inside a step.

    Example:
        >>> async def checkout() -> str:
        ...     return await recv("payment", timeout=60, default="expired", type=str)
    """
    if topic is None:
        check_type(type)
    name, kind = (NO_TOPIC, type) if topic is None else name_and_type(topic, "topic", type)
    branch = current_branch("recv", INSTEAD)
    return call(branch, Recv(name, seconds_of(timeout), default, kind))


class Recv(Operation[Any]):
    """The next message of a topic."""

    __slots__ = ("default", "name", "timeout", "type")
    kind: ClassVar[str] = "recv"

    def __init__(self, topic: str, timeout: float | None, default: object, type: object) -> None:
        self.name = topic
        self.timeout = timeout
        self.default = default
        self.type = type

    async def perform(self, run: Run, step_id: str) -> Answer:
        with Mailbox.of(run, self.name).place(step_id, self.timeout) as place:
            return await place.take()

    async def undo(self, run: Run, step_id: str, answer: Answer) -> None:
        await give_back(run, step_id, _keys.wake_key("message", run.workflow_id, self.name), answer)

    def conclude(self, run: Run, answer: Answer) -> Any:
        if answer.code is Code.VALUE:
            assert answer.payload is not None
            context = run.context(answer, "message", self.name)
            return run.executor.engine.codec.decode(answer.payload, self.type, context)
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)
        if self.default is not MISSING:
            return self.default
        raise WaitTimeout(f"workflow {run.workflow_id!r} received no message on topic {self.name!r} in time")


class Inbox(AsyncIterator[T], Generic[T]):
    """The messages of a topic. No generator: of one that is left early, the loop makes a task to close it,
    which a workflow would count as a birth, sooner or later than its replay does.
    """

    __slots__ = ("_topic",)

    def __init__(self, topic: Topic[T]) -> None:
        self._topic = topic

    async def __anext__(self) -> T:
        return await self._topic.recv()


class RecvRequest(Recv):
    """The next message of a topic, as a request; the same call in a journal as a recv."""

    __slots__ = ()

    def conclude(self, run: Run, answer: Answer) -> Any:
        try:
            value = super().conclude(run, answer)
        except PayloadDecodeError as error:
            if answer.code is not Code.VALUE:
                raise
            value = Misfit(error)
        return Request(run.workflow_id, self.name, answer.note, value)


class Place:
    """One recv that waits in a mailbox."""

    __slots__ = ("answer", "box", "claim", "due")

    def __init__(self, box: "Mailbox", claim: Claim) -> None:
        self.box = box
        self.claim = claim
        self.answer: Answer | None = None
        self.due: float | None = None

    def __enter__(self) -> "Place":
        self.box.places[self.claim.step_id] = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.box.leave(self)

    async def take(self) -> Answer:
        """Waits for a message, or for the deadline to pass in the database."""
        box = self.box
        try:
            answer = await box.run.executor.waiters.until((box.key,), self.look, deadline=lambda: self.due)
        except asyncio.CancelledError:
            await box.withdraw(self)
            raise
        assert answer is not None, "the database decides when a durable wait is over"
        return answer

    async def look(self) -> Answer | None:
        """Has this recv been served, now that the mailbox has looked?"""
        if self.answer is None:
            await self.box.look()
        return self.answer


class Mailbox:
    """The recvs of one workflow that wait on one topic, in the order of their calls."""

    __slots__ = ("_begun", "_finished", "_looking", "key", "places", "run", "topic")

    def __init__(self, run: Run, topic: str) -> None:
        self.run = run
        self.topic = topic
        self.key = _keys.wake_key("message", run.workflow_id, topic)
        self.places: dict[str, Place] = {}
        self._looking = asyncio.Lock()
        self._begun = 0
        self._finished = 0

    @classmethod
    def of(cls, run: Run, topic: str) -> "Mailbox":
        """The mailbox of a topic, for as long as somebody waits in it."""
        if run.mailboxes is None:
            run.mailboxes = {}
        box: Mailbox | None = run.mailboxes.get(topic)
        if box is None:
            box = run.mailboxes[topic] = cls(run, topic)
        return box

    def place(self, step_id: str, timeout: float | None) -> Place:
        """A place at the end of the queue."""
        return Place(self, Claim(step_id=step_id, kind=Recv.kind, name=self.topic, timeout=timeout))

    def leave(self, place: Place) -> None:
        """The place is not needed any more."""
        del self.places[place.claim.step_id]
        if not self.places and self.run.mailboxes is not None:
            self.run.mailboxes.pop(self.topic, None)

    async def look(self) -> None:
        """Claims for everybody who waits, unless a look that began after this call has done so meanwhile."""
        begun = self._begun
        async with self._looking:
            if self._finished > begun:
                return
            places = [place for place in self.places.values() if place.answer is None]
            if not places:
                return
            self._begun += 1
            number = self._begun

            def received(answers: Answers) -> None:
                self._finished = number
                for place, answer in zip(places, answers, strict=True):
                    if answer.code is Code.WAIT:
                        place.due = due_of(answer)
                    elif answer.code is not Code.LOST:
                        place.answer = answer
                        # They wake one by one, and must go on in the order in which they were served.
                        self.run.turns.reserve(place.claim.step_id)
                if any(place.answer is not None for place in places[1:]):
                    # Those who are served by another's look wait for a bell that has rung already.
                    self.run.executor.waiters.wake(self.key)

            point("recv.before_claim")
            record = Claims(owner=self.run.owner, claims=[place.claim for place in places])
            await self.run.commit(record, received)

    async def withdraw(self, place: Place) -> None:
        """A cancelled recv leaves nothing behind: what it took is given back before the cancellation goes on
        [M8].
        """
        del self.places[place.claim.step_id]
        while self._looking.locked():
            try:
                async with self._looking:
                    break
            except asyncio.CancelledError:
                continue  # the caller is on its way out already
        self.places[place.claim.step_id] = place
        if place.answer is not None:
            await give_back(self.run, place.claim.step_id, self.key, place.answer)


async def give_back(run: Run, step_id: str, key: str, answer: Answer) -> None:
    """Puts back what a recv took whose caller has been cancelled [M8]."""
    if answer.code is Code.VALUE and not run.stopped:
        if await run.executor.writer.insist(Undo(owner=run.owner, step_id=step_id)) is None:
            run.executor.give_up()
        run.turns.forget(step_id)
        run.executor.waiters.wake(key)


def send(
    workflow_id: str, message: object, topic: "str | Topic[Any] | None" = None, *, key: str | None = None
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
    found = current_scope("send", INSTEAD)
    if isinstance(found, Branch):
        return call(found, SendMessage(to, name, message, key))
    return Wait(lambda: _send_from_step(found, to, name, message, key))


class SendMessage(Operation[None]):
    """A message from workflow code."""

    __slots__ = ("_payload", "key", "message", "name", "to")
    kind: ClassVar[str] = "send"

    def __init__(self, to: str, topic: str, message: object, key: str | None) -> None:
        self.to = to
        self.name = topic
        self.message = message
        self.key = key

    def prepare(self, run: Run, step_id: str) -> None:
        engine = run.executor.engine
        self._payload = engine.codec.encode(self.message, engine.context(self.to, "message", self.name))

    async def perform(self, run: Run, step_id: str) -> Answer:
        point("send.before_commit")
        (answer,) = await run.commit(
            Send(
                owner=run.owner,
                step_id=step_id,
                kind=self.kind,
                name=self.name,
                target=self.to,
                to=self.to,
                topic=self.name,
                payload=self._payload,
                key=self.key,
            )
        )
        point("send.after_commit")
        return answer

    def conclude(self, run: Run, answer: Answer) -> None:
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)
        check_sent(self.to, answer)


def check_sent(to: str, answer: Answer) -> None:
    """Raises what became of a message that was not accepted [M2]."""
    if answer.code is Code.NOT_FOUND:
        raise WorkflowNotFound(to)
    if answer.code is Code.FINISHED:
        raise WorkflowFinished(to)


async def _send_from_step(found: StepScope, to: str, topic: str, message: object, key: str | None) -> None:
    run = found.run
    engine = run.executor.engine
    payload = engine.codec.encode(message, engine.context(to, "message", topic))
    (answer,) = await run.commit(
        Send(
            owner=run.owner,
            step_id=found.step_id,
            within=True,
            token=uuid4(),
            to=to,
            topic=topic,
            payload=payload,
            key=key,
        )
    )
    check_sent(to, answer)


async def send_from_outside(
    engine: Engine,
    workflow_id: str,
    message: object,
    topic: "str | Topic[Any] | None",
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
    point("outside_send.before_commit")
    (answer,) = await engine.writer.commit(
        OutsideSend(to=to, topic=name, payload=payload, token=uuid4(), key=key)
    )
    point("outside_send.after_commit")
    check_sent(to, answer)


__all__ = ["MISSING", "Missing", "Topic", "recv", "send", "send_from_outside"]
