"""Sending: the one record of a message, whether it is just sent or makes a request, wherever it is sent.

What is made of the answer to a request is the business of `requests`.
"""

from typing import ClassVar
from uuid import uuid4

from holdfast._engine.engine import Engine
from holdfast._observe import point
from holdfast._primitives.effects import Effect
from holdfast._run.run import Run
from holdfast._store.commits import Answer, Code, OutsideSend, Send
from holdfast.errors import WorkflowFinished, WorkflowNotFound


class SendMessage(Effect):
    """A message from a workflow or a step of it."""

    __slots__ = ("_payload", "key", "message", "name", "request", "to")
    kind: ClassVar[str] = "send"

    def __init__(
        self, to: str, topic: str, message: object, key: str | None = None, request: str | None = None
    ) -> None:
        self.to = to
        self.name = topic
        self.message = message
        self.key = key
        self.request = request

    def prepare(self, run: Run, step_id: str) -> None:
        engine = run.executor.engine
        self._payload = engine.codec.encode(self.message, engine.context(self.to, "message", self.name))

    def before_commit(self) -> None:
        point("send.before_commit")

    def after_commit(self) -> None:
        point("send.after_commit")

    def record(self, run: Run, step_id: str, attempt: int = 1) -> Send:
        return Send(
            owner=run.owner,
            step_id=step_id,
            kind=self.kind,
            name=self.name,
            target=self.to,
            to=self.to,
            topic=self.name,
            payload=self._payload,
            key=self.key,
            request=self.request,
        )

    def check(self, answer: Answer) -> None:
        check_sent(self.to, answer)


def check_sent(to: str, answer: Answer) -> None:
    """Raises what became of a message that was not accepted [M2]."""
    if answer.code is Code.NOT_FOUND:
        raise WorkflowNotFound(to)
    if answer.code is Code.FINISHED:
        raise WorkflowFinished(to)


async def send_outside(
    engine: Engine, to: str, topic: str, payload: bytes, *, key: str | None = None, request: str | None = None
) -> Answer:
    """Sends from outside any workflow: a reply that was lost doubles nothing [M3]."""
    point("outside_send.before_commit")
    (answer,) = await engine.writer.commit(
        OutsideSend(to=to, topic=topic, payload=payload, token=uuid4(), key=key, request=request)
    )
    point("outside_send.after_commit")
    return answer
