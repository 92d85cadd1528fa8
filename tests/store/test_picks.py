"""`commit_picks`: the first alternative that is ready, in one statement with what it takes."""

from __future__ import annotations

import struct
from typing import TypeAlias
from uuid import uuid4

import asyncpg
import pytest

from holdfast._store.commits import Answer, Close, Code, End, OutsideSend, Owner, SetEvent, Undo, Write
from holdfast._store.picks import Alternative, Offer, Pick, Picks, chosen, took_message
from tests.store.test_plans import begin, commit, connection

__all__ = ["connection"]
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def pick(
    step_id: str, *wanted: Alternative, timeout: float | None = None, offer: Offer | None = None
) -> Pick:
    return Pick(step_id=step_id, kind="first", name="n", timeout=timeout, wanted=wanted, offer=offer)


def recv(*topics: str, timeout: float | None = None) -> Alternative:
    return Alternative(kind="recv", names=topics, timeout=timeout)


def message(to: str, topic: str, payload: bytes, request: str | None = None) -> OutsideSend:
    return OutsideSend(to=to, topic=topic, payload=payload, token=uuid4(), request=request)


def frames(data: bytes | None) -> list[tuple[int, int, bytes]]:
    """The values of a reading, each with its offset and attempt."""
    assert data is not None
    found = []
    while data:
        offset, attempt, origin, length = struct.unpack_from(">qhhi", data)
        begin = 16 + origin
        found.append((offset, attempt, data[begin : begin + length]))
        data = data[begin + length :]
    return found


async def ask(database: Connection, executor: int, owner: Owner, *picks: Pick) -> list[Answer]:
    answers = await commit(database, executor, Picks(owner=owner, picks=picks))
    return [answers[place] for place in range(1, len(picks) + 1)]


async def test_m5_of_several_topics_the_oldest_message_and_of_a_first_the_lowest(
    connection: Connection,
) -> None:
    executor, (owner,) = await begin(connection, 1)
    to = owner.workflow_id
    for topic, payload in (("b", b"1"), ("a", b"2"), ("b", b"3")):
        await commit(connection, executor, message(to, topic, payload, "who asks"))
    found = await ask(
        connection,
        executor,
        owner,
        pick("1", recv("a"), recv("b")),
        pick("2", recv("x"), recv("a", "b")),
        pick("3", recv("a"), recv("b")),
        pick("4", recv("a"), recv("b")),
    )
    assert [(one.code, one.payload, one.choice) for one in found] == [
        (0, b"2", 0),
        (0, b"1", 2),
        (0, b"3", 1),
        (Code.WAIT, None, None),
    ]
    assert [one.note for one in found] == ["who asks"] * 3 + [None]
    rows = await connection.fetch("select consumed_by from holdfast.messages order by id")
    assert [row[0] for row in rows] == ["2", "1", "3"]
    assert await connection.fetchval("select count(*) from holdfast.steps") == 3


async def test_invariant_1_a_repeated_batch_is_answered_from_the_rows(connection: Connection) -> None:
    executor, (owner,) = await begin(connection, 1)
    for payload in (b"1", b"2"):
        await commit(connection, executor, message(owner.workflow_id, "a", payload))
    record = Picks(owner=owner, picks=[pick("1", recv("x"), recv("a")), pick("2", recv("b"), timeout=60.0)])
    first = await commit(connection, executor, record)
    again = await commit(connection, executor, record, again=True)
    assert first[1] == again[1] == Answer(Code.VALUE, b"1", None, None, 1)
    assert first[2].code is again[2].code is Code.WAIT
    assert first[2].amount is not None
    assert again[2].amount is not None
    assert again[2].amount < first[2].amount <= 60
    assert await connection.fetchval("select count(*) from holdfast.messages where consumed_by > ''") == 1


async def test_m8_what_a_first_took_is_given_back(connection: Connection) -> None:
    executor, (owner,) = await begin(connection, 1)
    await commit(connection, executor, message(owner.workflow_id, "a", b"1"))
    (answer,) = await ask(connection, executor, owner, pick("1", recv("x", "a")))
    assert took_message((recv("x", "a"),), answer)
    await commit(connection, executor, Undo(owner=owner, step_id="1"))
    assert await connection.fetchval("select count(*) from holdfast.steps") == 0
    (answer,) = await ask(connection, executor, owner, pick("2", recv("a")))
    assert answer.payload == b"1"


async def test_w9_times_count_from_the_row_and_the_nearest_is_told(connection: Connection) -> None:
    executor, (owner,) = await begin(connection, 1)
    wanted = (recv("a", timeout=40.0), Alternative(kind="sleep", timeout=30.0))
    (answer,) = await ask(connection, executor, owner, pick("1", *wanted, timeout=50.0))
    assert answer.amount == pytest.approx(30, abs=1)
    for passed, code, choice in ((31, Code.VALUE, 1), (41, Code.TIMEOUT, 0)):
        await connection.execute(
            "update holdfast.steps set started_at = holdfast.now() - make_interval(secs => $1)", float(passed)
        )
        (answer,) = await ask(connection, executor, owner, pick("1", *wanted, timeout=50.0))
        assert (answer.code, answer.choice) == (code, choice)
        await connection.execute("update holdfast.steps set finished_at = null")
    (answer,) = await ask(connection, executor, owner, pick("1", recv("a"), timeout=41.0))
    assert (answer.code, answer.choice) == (Code.TIMEOUT, None)
    row = await connection.fetchrow("select outcome, choice, target, output from holdfast.steps")
    assert row is not None
    assert tuple(row) == (3, None, None, None)


async def test_an_offer_counts_as_ready_at_its_place(connection: Connection) -> None:
    executor, (owner,) = await begin(connection, 1)
    await commit(connection, executor, message(owner.workflow_id, "a", b"1"))
    step = Alternative(kind="step")
    offered = Offer(1, Code.ERROR, b"broken", 3)
    found = await ask(
        connection,
        executor,
        owner,
        pick("1", recv("a"), step, offer=offered),
        pick("2", recv("a"), step, offer=offered),
    )
    assert [(one.code, one.payload, one.choice) for one in found] == [(0, b"1", 0), (1, b"broken", 1)]
    assert [row[0] for row in await connection.fetch("select attempts from holdfast.steps")] == [None, 3]


async def test_s8_values_of_a_stream_are_framed_up_to_the_limits(connection: Connection) -> None:
    executor, (owner, other) = await begin(connection, 2)
    reading = Alternative(kind="read_stream", names=("s",), target=other.workflow_id, after=-1)
    (answer,) = await ask(connection, executor, owner, pick("1", reading))
    assert answer.code is Code.WAIT
    write = Write(
        owner=other,
        step_id="1",
        kind="write_stream",
        name="s",
        key="s",
        payloads=[b"1", b"", b"3"],
        attempt=2,
    )
    await commit(connection, executor, write)
    (answer,) = await ask(connection, executor, owner, pick("1", recv("a"), reading))
    assert (answer.code, answer.choice) == (Code.VALUE, 1)
    assert frames(answer.payload) == [(0, 2, b"1"), (1, 2, b""), (2, 2, b"3")]
    later = Alternative(kind="read_stream", names=("s",), target=other.workflow_id, after=1)
    (answer,) = await ask(connection, executor, owner, pick("2", later))
    assert frames(answer.payload) == [(2, 2, b"3")]
    big = [bytes(400_000)] * 3 + [b"x"] * 600
    write = Write(owner=other, step_id="2", kind="write_stream", name="b", key="b", payloads=big)
    await commit(connection, executor, write)
    large = Alternative(kind="read_stream", names=("b",), target=other.workflow_id, after=-1)
    (answer,) = await ask(connection, executor, owner, pick("3", large))
    assert [len(payload) for _, _, payload in frames(answer.payload)] == [400_000] * 3
    rest = Alternative(kind="read_stream", names=("b",), target=other.workflow_id, after=2)
    (answer,) = await ask(connection, executor, owner, pick("4", rest))
    assert [offset for offset, _, _ in frames(answer.payload)] == list(range(3, 503))


@pytest.mark.parametrize(("how", "code"), [("closed", 7), ("ended", 5), ("unknown", 4)])
async def test_s4_the_end_of_a_stream_is_told(connection: Connection, how: str, code: int) -> None:
    executor, (owner, other) = await begin(connection, 2)
    if how == "closed":
        await commit(
            connection, executor, Close(owner=other, step_id="1", kind="close_stream", name="s", key="s")
        )
    elif how == "ended":
        await commit(connection, executor, End(owner=other, status=3, output=b"1"))
    target = "nobody" if how == "unknown" else other.workflow_id
    reading = Alternative(kind="read_stream", names=("s",), target=target, after=-1)
    (answer,) = await ask(connection, executor, owner, pick("1", reading))
    assert (answer.code, answer.payload, answer.note) == (code, None, target)


async def test_e5_changes_of_an_event(connection: Connection) -> None:
    executor, (owner, other) = await begin(connection, 2)

    def watching(target: str, after: int) -> Alternative:
        return Alternative(kind="watch_event", names=("k",), target=target, after=after)

    for step, payload in (("1", b"one"), ("2", b"two")):
        await commit(
            connection,
            executor,
            SetEvent(owner=other, step_id=step, kind="set_event", name="k", key="k", payload=payload),
        )
    unknown, seen, news = (
        *[watching("nobody", 0), watching(other.workflow_id, 2)],
        watching(other.workflow_id, 1),
    )
    found = await ask(connection, executor, owner, pick("1", unknown, seen), pick("2", unknown, seen, news))
    assert found[0].code is Code.WAIT
    assert (found[1].code, found[1].choice, frames(found[1].payload)) == (0, 2, [(2, 0, b"two")])
    await commit(connection, executor, End(owner=other, status=3, output=b"1"))
    (answer,) = await ask(connection, executor, owner, pick("1", unknown, seen))
    assert (answer.code, answer.choice) == (Code.FINISHED, 1)


async def test_w14_nothing_is_taken_for_a_workflow_that_is_lost(connection: Connection) -> None:
    executor, (owner,) = await begin(connection, 1)
    await commit(connection, executor, message(owner.workflow_id, "a", b"1"))
    lost = Owner(owner.workflow_id, 2)
    answers = await commit(connection, executor, Picks(owner=lost, picks=[pick("1", recv("a"))]))
    assert answers == {-1: Answer(Code.LOST)}
    assert await connection.fetchval("select count(*) from holdfast.messages where consumed_by > ''") == 0


def test_choices_count_every_topic() -> None:
    wanted = (recv("a", "b"), Alternative(kind="sleep"), recv("c"))
    assert [chosen(wanted, choice) for choice in range(4)] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    with pytest.raises(IndexError):
        chosen(wanted, 4)
