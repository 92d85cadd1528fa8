"""Sending from where nothing is replayed, a step or the outside: one commit, an identity made before it.

What is sent, a message or a request, and what is made of the answer are the business of their rooms.
"""

from uuid import uuid4

from holdfast._engine.engine import Engine
from holdfast._observe import point
from holdfast._run.context import StepScope
from holdfast._store.commits import Answer, OutsideSend, Send


async def send_within(
    found: StepScope,
    to: str,
    topic: str,
    message: object,
    *,
    key: str | None = None,
    request: str | None = None,
) -> Answer:
    """Sends from a step's body: at least once, for the step may be tried again [M3]."""
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
            request=request,
        )
    )
    return answer


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
