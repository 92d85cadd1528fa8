"""Requests: messages that wait for a reply.

A request is an ordinary message that carries an id. The reply is an event of the workflow that was asked,
under a key that nobody but the library can take: so it is committed exactly once, wakes whoever waits for it,
and an asker whose workflow ends without a reply is told as for any event [E2].
"""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, ClassVar, Generic, TypeVar

from holdfast import _clock, _keys
from holdfast._engine.engine import Engine
from holdfast._observe import logger, point
from holdfast._primitives.channels import Channel, name_and_type
from holdfast._primitives.effects import Effect, commit_within, within
from holdfast._primitives.sending import SendMessage, check_sent, send_outside
from holdfast._primitives.watching import bells_of
from holdfast._run.context import Branch, StepScope, current_branch, current_scope
from holdfast._run.operation import Operation, Wait, call, claim
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Claim, Code, Send, SetEvent
from holdfast._store.looks import EventLook
from holdfast.config import seconds_of
from holdfast.errors import (
    NotInWorkflow,
    PayloadDecodeError,
    RequestRejected,
    WaitTimeout,
)

Q = TypeVar("Q")
A = TypeVar("A")
INSTEAD = "from outside, ask with Runtime.ask, Client.ask or Handle.ask"
REPLY = "reply"
"""What a codec is told that a reply is; the name is the topic, the workflow the one that was asked."""


class Request(Generic[Q, A]):
    """A message taken by `Topic.requests`, to be answered once, by `reply` or by `reject`."""

    __slots__ = ("_answered", "_id", "_topic", "_workflow_id", "value")

    def __init__(self, workflow_id: str, topic: str, request: str | None, value: Q) -> None:
        self.value: Q = value
        self._workflow_id = workflow_id
        self._topic = topic
        self._id = request
        self._answered = False

    @property
    def asked(self) -> bool:
        """Does somebody wait for the answer? False of a message that was sent: its answer goes nowhere."""
        return self._id is not None

    def reply(self, value: A) -> Wait[None]:
        """Answers with a value. In a workflow exactly once; in a step of it at least once, and the first
        answer that is committed is the one that counts.

        An asker who has gone is no error.

        Raises:
            RuntimeError: if the workflow has answered this request already; nothing is written.
            PayloadNotSerializable, PayloadTooLarge: before anything is written; it can still be answered.
            NotInWorkflow: outside the workflow that took the request.
        """
        return self._answer(Reply, value)

    def reject(self, error: Exception | str) -> Wait[None]:
        """Answers with an error, which is raised where it was asked: as itself if its class is known there,
        else as `RemoteError`; a text as `RequestRejected`. Otherwise like `reply`.
        """
        if isinstance(error, str):
            error = RequestRejected(error)
        if not isinstance(error, Exception):
            raise TypeError(f"reject takes an Exception or a text, not {type(error).__name__}")
        return self._answer(Reject, error)

    def _answer(self, kind: "type[Reply]", content: Any) -> Wait[None]:
        found = current_scope(kind.kind, "a request is answered by the workflow that took it")
        if found.run.workflow_id != self._workflow_id:
            raise NotInWorkflow("a request is answered by the workflow that took it, and by no other")
        if self._id is None:
            return Wait(_nothing)
        answer = kind(self._topic, self._id, content)
        if isinstance(found, StepScope):
            # The step may have been tried before, and the database knows what came of that.
            return within(found, answer)
        wait = call(found, answer)
        return Wait(lambda: self._once(wait))

    async def _once(self, wait: Wait[None]) -> None:
        # Marked before the first wait: whichever branch comes second does so again on a replay.
        if self._answered:
            raise RuntimeError("this request has been answered already")
        self._answered = True
        try:
            await wait
        except BaseException:
            self._answered = False  # if it was committed all the same, no other will count
            raise

    def __repr__(self) -> str:
        return f"<request of topic {self._topic!r}>"


class Misfit:
    """In the place of a value that does not decode: why."""

    __slots__ = ("error",)

    def __init__(self, error: PayloadDecodeError) -> None:
        self.error = error


class Requests(AsyncIterator[Request[Any, Any]]):
    """The requests of a topic; `take` makes the call that takes the next one. No generator: see `Inbox`."""

    __slots__ = ("_take", "_topic")

    def __init__(self, topic: str, take: Callable[[], Operation[Request[Any, Any]]]) -> None:
        self._topic = topic
        self._take = take

    async def __anext__(self) -> Request[Any, Any]:
        while True:
            branch = current_branch("requests", INSTEAD)
            request = await call(branch, self._take())
            if not isinstance(request.value, Misfit):
                return request
            if not request.asked:
                logger.warning(
                    "workflow %r skips a message of topic %r that does not fit its type",
                    branch.run.workflow_id,
                    self._topic,
                )
            await request.reject(request.value.error)


async def _nothing() -> None:
    """The answer to a message that was not asked."""


class Reply(Effect):
    """The value that answers a request."""

    __slots__ = ("_payload", "content", "name", "request")
    kind: ClassVar[str] = "reply"

    def __init__(self, topic: str, request: str, content: Any) -> None:
        self.name = topic
        self.request = request
        self.content = content

    def encoded(self, run: Run) -> bytes:
        """The reply as it is stored."""
        engine = run.executor.engine
        return engine.codec.encode_reply(self.content, engine.context(run.workflow_id, REPLY, self.name))

    def prepare(self, run: Run, step_id: str) -> None:
        self._payload = self.encoded(run)

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
            target=self.request,
            key=_keys.reply_key(self.request),
            payload=self._payload,
        )


class Reject(Reply):
    """The error that answers a request."""

    __slots__ = ()
    kind: ClassVar[str] = "reject"

    def encoded(self, run: Run) -> bytes:
        engine = run.executor.engine
        return engine.codec.encode_rejection(self.content, engine.context(run.workflow_id, REPLY, self.name))


def ask(
    workflow_id: str,
    topic: "str | Channel[Any]",
    value: object,
    timeout: float | timedelta | None,
    type: object = Any,
) -> Wait[Any]:
    """Asks from a workflow or from a step; see `Topic.ask`."""
    to = _keys.check_workflow_id(workflow_id)
    name, kind = name_and_reply_type(topic, type)
    seconds = seconds_of(timeout)
    found = current_scope("ask", INSTEAD)
    if isinstance(found, Branch):
        return call(found, Ask(to, name, value, seconds, kind))
    return Wait(lambda: _ask_from_step(found, to, name, value, seconds, kind))


def name_and_reply_type(topic: "str | Channel[Any]", given: object) -> tuple[str, Any]:
    """The name of a topic, and the type of the replies to what is asked on it."""
    name, _ = name_and_type(topic, "topic", Any)
    return name, topic.argument(1) if isinstance(topic, Channel) and given is Any else given


class Ask(Operation[Any]):
    """A request from workflow code, and the reply to it.

    One commit sends it and leaves the call open in the journal, with the request's id as its target; a claim
    then waits for the reply.
    """

    __slots__ = ("_payload", "name", "timeout", "to", "type", "value")
    kind: ClassVar[str] = "ask"

    def __init__(self, to: str, topic: str, value: object, timeout: float | None, type: object) -> None:
        self.to = to
        self.name = topic
        self.value = value
        self.timeout = timeout
        self.type = type

    def prepare(self, run: Run, step_id: str) -> None:
        if step_id not in run.journal:
            engine = run.executor.engine
            self._payload = engine.codec.encode(self.value, engine.context(self.to, "message", self.name))

    async def perform(self, run: Run, step_id: str) -> Answer:
        record = run.journal.get(step_id)
        request = _keys.new_request() if record is None else record.target
        assert request is not None, "an open ask is recorded with the id of its request"
        if record is None:
            answer = await self._send(run, step_id, request)
            if answer.code is not Code.VALUE:
                return answer
        key = _keys.reply_key(request)
        claimed = Claim(step_id=step_id, kind=self.kind, name=key, target=self.to, timeout=self.timeout)
        return await claim(run, claimed, bells_of(self.to, key))

    async def _send(self, run: Run, step_id: str, request: str) -> Answer:
        point("send.before_commit")
        (answer,) = await run.commit(
            Send(
                owner=run.owner,
                step_id=step_id,
                kind=self.kind,
                name=self.name,
                target=request,
                open=True,
                to=self.to,
                topic=self.name,
                payload=self._payload,
                request=request,
            )
        )
        point("send.after_commit")
        return answer

    def conclude(self, run: Run, answer: Answer) -> Any:
        if answer.code is Code.ERROR:
            raise self.failure(run, answer)
        return reply_in(run.executor.engine, self.to, self.name, answer, self.type)


def reply_in(engine: Engine, to: str, topic: str, answer: Answer, type: object) -> Any:
    """The reply to a request, or what became of it instead, as an exception."""
    check_sent(to, answer)
    if answer.code is Code.TIMEOUT:
        raise WaitTimeout(f"workflow {to!r} did not reply in time to a request of topic {topic!r}")
    assert answer.payload is not None
    return engine.codec.decode_reply(answer.payload, type, engine.context(to, REPLY, topic), engine.errors)


async def _ask_from_step(
    found: StepScope, to: str, topic: str, value: object, timeout: float | None, type: object
) -> Any:
    engine = found.run.executor.engine
    request, deadline = _keys.new_request(), _deadline(timeout)
    sending = SendMessage(to, topic, value, request=request)
    sending.prepare(found.run, found.step_id)
    answer = await commit_within(found, sending)
    if answer.code is Code.VALUE:
        answer = await _reply_to(engine, to, request, deadline)
    return reply_in(engine, to, topic, answer, type)


async def ask_from_outside(
    engine: Engine,
    workflow_id: str,
    topic: "str | Channel[Any]",
    value: object,
    timeout: float | timedelta | None,
    type: object = Any,
) -> Any:
    """Asks from outside any workflow: one commit, and one wait; nothing of the reply is recorded."""
    to = _keys.check_workflow_id(workflow_id)
    name, kind = name_and_reply_type(topic, type)
    request, deadline = _keys.new_request(), _deadline(seconds_of(timeout))
    payload = engine.codec.encode(value, engine.context(to, "message", name))
    answer = await send_outside(engine, to, name, payload, request=request)
    if answer.code is Code.VALUE:
        answer = await _reply_to(engine, to, request, deadline)
    return reply_in(engine, to, name, answer, kind)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else _clock.monotonic() + timeout


async def _reply_to(engine: Engine, to: str, request: str, deadline: float | None) -> Answer:
    """Waits for the reply to a request that has been sent, outside the journal."""
    key = _keys.reply_key(request)
    look = EventLook(to, key)
    news = await engine.waiters.until(bells_of(to, key), lambda: engine.lookups.look(look), deadline=deadline)
    if news is None:
        return Answer(Code.TIMEOUT)
    return Answer(Code.VALUE if news.revision is not None else Code.FINISHED, news.payload)


__all__ = ["Misfit", "Request", "Requests", "ask", "ask_from_outside"]
