"""Tokens: one message each, exactly once, and nothing to be learned from a token that sends nothing."""

from __future__ import annotations

import asyncio
import logging
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import timedelta
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

import holdfast as hf
from holdfast._api.tokens import Tokens
from holdfast._store.connection import Connection
from holdfast.testing.clock import DatabaseClock, ProcessClock
from holdfast.testing.faults import Proxy
from tests.processes import Processes, Waits, within

KEY, OTHER = b"k" * 32, b"o" * 32
SIGNED = hf.Settings(hmac_keys=[KEY])
DECISIONS = hf.Topic[str]("decision")


@hf.workflow
async def decide(count: int = 1) -> list[str]:
    return [await DECISIONS.recv() for _ in range(count)]


@pytest.fixture
async def client(processes: Processes) -> hf.Client:
    """A process that runs nothing, so that what is sent stays; "w" is there to be sent to."""
    client = await processes.client(settings=SIGNED)
    await client.start(decide(), id="w")
    return client


async def sent(database: Connection) -> list[bytes]:
    return [row[0] for row in await database.fetch("select payload from holdfast.messages order by id")]


async def rejected(client: hf.Client, token: object) -> None:
    with pytest.raises(hf.TokenRejected) as caught:
        await client.redeem(cast("str", token), "yes")
    assert caught.value.args == ("this token is not valid, or no longer",)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_a_token_sends_one_message(processes: Processes, database: Connection) -> None:
    rt, client = await processes.runtime(decide, settings=SIGNED), await processes.client(settings=SIGNED)
    handle = await rt.start(decide())
    token = rt.token(handle, DECISIONS, ttl=timedelta(days=1))
    await client.redeem(token, "yes")
    assert await within(2, handle.result()) == ["yes"]
    await rejected(rt, token)
    await rejected(client, token)
    assert await sent(database) == [b'"yes"']


async def test_a_token_is_for_an_id_whichever_workflow_has_it(
    client: hf.Client, database: Connection
) -> None:
    token = client.token("w", DECISIONS, ttl=60)
    await client.redeem(token, "yes")
    await client.cancel("w")
    await rejected(client, token)
    await client.delete("w")
    await rejected(client, token)
    await client.start(decide(), id="w")
    await client.redeem(token, "again")
    await rejected(client, token)
    assert await sent(database) == [b'"again"']


async def test_a_waiting_workflow_is_woken_in_another_process_and_in_this(
    processes: Processes, waits: Waits
) -> None:
    rt, client = await processes.runtime(decide, settings=SIGNED), await processes.client(settings=SIGNED)
    handle = await rt.start(decide(2), id="w")
    for process in (rt, client):
        await waits.on("message", "w", "decision")
        waits.forget()
        await process.redeem(rt.token("w", DECISIONS, ttl=60), "yes")
    assert await within(2, handle.result()) == ["yes", "yes"]


async def test_each_token_counts_for_itself(client: hf.Client, database: Connection) -> None:
    for number in range(3):
        await client.redeem(client.token("w", "decision", ttl=60), number)
    assert await sent(database) == [b"0", b"1", b"2"]


def test_making_a_token_needs_no_database() -> None:
    client = hf.Client("postgresql://127.0.0.1:1/none", settings=SIGNED)
    token = client.token("w" * 512, hf.Topic[str]("t" * 256), ttl=1)
    assert len(token) <= 1200
    assert token.isascii()
    assert not set("+/=&?#% ") & set(token)
    assert token != client.token("w" * 512, "t" * 256, ttl=1)


def test_what_cannot_be_signed_is_refused() -> None:
    client = hf.Client("postgresql://127.0.0.1:1/none", settings=SIGNED)
    nonsense: Any = "soon"
    for ttl in (0, -1, float("inf"), timedelta()):
        with pytest.raises(ValueError, match=r"ttl|duration"):
            client.token("w", "t", ttl=ttl)
    with pytest.raises(TypeError):
        client.token("w", "t", ttl=nonsense)
    for names in (("", "t"), ("w", ""), ("w" * 513, "t"), ("w", "::x")):
        with pytest.raises(hf.InvalidName):
            client.token(*names, ttl=1)


async def test_without_keys_it_is_a_matter_of_configuration(processes: Processes) -> None:
    client = await processes.client()
    with pytest.raises(hf.ConfigurationError, match=r"Settings\.hmac_keys"):
        client.token("w", "t", ttl=1)
    with pytest.raises(hf.ConfigurationError, match=r"Settings\.hmac_keys"):
        await client.redeem("anything", 1)


async def test_of_a_hundred_at_once_one_wins(
    processes: Processes, client: hf.Client, database: Connection
) -> None:
    others = [client, *[await processes.client(settings=SIGNED) for _ in range(3)]]
    token = client.token("w", DECISIONS, ttl=60)
    found = await asyncio.gather(
        *(others[number % 4].redeem(token, number) for number in range(100)), return_exceptions=True
    )
    assert len([each for each in found if each is None]) == 1
    assert {type(each) for each in found} == {type(None), hf.TokenRejected}
    assert await sent(database) == [str(found.index(None)).encode()]


async def test_all_that_is_wrong_looks_alike(
    processes: Processes, client: hf.Client, database: Connection, dsn: str
) -> None:
    rt = await processes.runtime(decide, settings=SIGNED)
    await rt.start(decide(0), id="over")
    await rt.handle("over").result()
    good = client.token("w", DECISIONS, ttl=60)
    elsewhere = hf.Client(dsn, schema="elsewhere", settings=SIGNED)
    forger = hf.Client(dsn, settings=hf.Settings(hmac_keys=[OTHER]))
    for wrong in (
        client.token("nobody", DECISIONS, ttl=60),
        client.token("over", DECISIONS, ttl=60),
        forger.token("w", DECISIONS, ttl=60),
        elsewhere.token("w", DECISIONS, ttl=60),
        good[:-1],
        good + "A",
        good + "=",
        good + "\n",
        " " + good,
        good[:20] + "é" + good[20:],
        good[:20],
        "",
        "A" * 5000,
        "A" * 100,
        None,
        17,
        good.encode(),
    ):
        await rejected(client, wrong)
    assert await sent(database) == []
    await client.redeem(good, "yes")
    await rejected(client, good)


async def test_m2_a_cancelled_workflow_still_takes_messages(client: hf.Client) -> None:
    await client.cancel("w")
    await client.redeem(client.token("w", DECISIONS, ttl=60), "yes")


TOKENS = Tokens("holdfast", [KEY])
TOKEN = TOKENS.issue("order-17", "decision", 60)
BYTES = urlsafe_b64decode(TOKEN + "=" * (-len(TOKEN) % 4))


def written(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


@given(some.integers(0, len(TOKEN) * 8 - 1))
@settings(max_examples=len(TOKEN) * 8, deadline=None)
def test_no_bit_of_a_token_can_be_changed(bit: int) -> None:
    assert TOKENS.open(TOKEN) is not None
    data = bytearray(TOKEN.encode())
    data[bit // 8] ^= 1 << bit % 8
    assert TOKENS.open(data.decode("latin-1")) is None


def test_no_bit_of_its_bytes_can_be_changed() -> None:
    assert written(BYTES) == TOKEN
    for bit in range(len(BYTES) * 8):
        data = bytearray(BYTES)
        data[bit // 8] ^= 1 << bit % 8
        assert TOKENS.open(written(bytes(data))) is None


@given(some.text(max_size=1300) | some.binary(max_size=900).map(written))
def test_nothing_made_up_is_a_token(made_up: str) -> None:
    assert TOKENS.open(made_up) is None


@given(some.integers(0, len(BYTES)), some.integers(0, len(BYTES)))
def test_no_part_of_a_token_is_one(start: int, end: int) -> None:
    data = BYTES[start:end]
    assert (TOKENS.open(written(data)) is not None) == (data == BYTES)


NAMES = some.text(
    some.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60
)


@given(NAMES, NAMES)
def test_names_come_back_as_they_were(workflow_id: str, topic: str) -> None:
    grant = TOKENS.open(TOKENS.issue(workflow_id, topic, 60))
    assert grant is not None
    assert (grant.workflow_id, grant.topic) == (workflow_id, topic)


def test_names_cannot_run_into_each_other() -> None:
    grants = [TOKENS.open(TOKENS.issue(*names, 60)) for names in (("ab", "c"), ("a", "bc"))]
    assert [(grant.workflow_id, grant.topic) for grant in grants if grant] == [("ab", "c"), ("a", "bc")]


def test_keys_are_rotated_by_their_id() -> None:
    old, both, new = Tokens("s", [KEY]), Tokens("s", [OTHER, KEY]), Tokens("s", [OTHER])
    by_old, by_both = old.issue("w", "t", 60), both.issue("w", "t", 60)
    assert both.open(by_old) is not None
    assert both.open(by_both) is not None
    assert new.open(by_both) is not None
    assert new.open(by_old) is None
    assert old.open(by_both) is None
    assert KEY[:8] not in urlsafe_b64decode(by_old + "=" * (-len(by_old) % 4))


async def test_a_token_expires_by_the_databases_clock(
    client: hf.Client, dsn: str, database: Connection
) -> None:
    async with DatabaseClock(dsn) as clock:
        tokens = [client.token("w", DECISIONS, ttl=3600) for _ in range(3)]
        await clock.advance(3600 - 30)
        await client.redeem(tokens[0], "in time")
        await clock.advance(60)
        await rejected(client, tokens[1])
        with ProcessClock() as own:
            own.jump(-7200)
            await rejected(client, tokens[1])
        await clock.advance(-60)
        await client.redeem(tokens[2], "in time again")
    assert len(await sent(database)) == 2


async def test_a_token_is_over_at_the_very_moment(client: hf.Client, database: Connection) -> None:
    """The clock stands still, at the expiry and a microsecond before."""
    for early, taken in ((0, False), (1, True)):
        token = client.token("w", DECISIONS, ttl=3600)
        grant = TOKENS.open(token)
        assert grant is not None
        moment = f"to_timestamp({grant.expires - early} / 1000000.0)"
        assert await database.fetchval(f"select (extract(epoch from {moment}) * 1000000)::bigint") == (
            grant.expires - early
        )
        await database.execute(
            "create or replace function holdfast.now() returns timestamptz language sql volatile "
            f"as $$ select {moment} $$"
        )
        if taken:
            await client.redeem(token, "in time")
        else:
            await rejected(client, token)


@pytest.mark.parametrize("part", ["lose_request", "lose_reply"])
async def test_a_redeem_whose_connection_is_lost_succeeds_once(
    processes: Processes, client: hf.Client, database: Connection, dsn: str, part: str
) -> None:
    async with Proxy(dsn) as proxy:
        other = await processes.client(dsn=proxy.dsn, settings=SIGNED)
        token = client.token("w", DECISIONS, ttl=60)
        lost = getattr(proxy, part)("redeem_token")
        await other.redeem(token, "yes")
        assert lost.happened.is_set()
        await processes.leave(other)
    await rejected(client, token)
    assert await sent(database) == [b'"yes"']


async def test_who_tries_again_after_the_expiry_is_told_that_it_was_sent(
    client: hf.Client, database: Connection
) -> None:
    """Only the attempt that sent it: to any other, it is over."""
    first, second = uuid4(), uuid4()
    redeem = "select holdfast.redeem_token('w', 't', '1', 'key', $1, holdfast.now() + $2, 'channel')"
    assert await database.fetchval(redeem, first, timedelta(hours=1))
    assert await database.fetchval(redeem, first, timedelta(hours=-1))
    assert not await database.fetchval(redeem, second, timedelta(hours=1))
    assert not await database.fetchval(redeem, second, timedelta(hours=-1))
    assert await sent(database) == [b"1"]


async def test_a_value_that_cannot_be_stored_leaves_the_token_unused(
    client: hf.Client, database: Connection
) -> None:
    token = client.token("w", DECISIONS, ttl=60)
    with pytest.raises(hf.PayloadNotSerializable):
        await client.redeem(token, object())
    with pytest.raises(hf.PayloadTooLarge):
        await client.redeem(token, "x" * 2_000_000)
    await rejected(client, "forged")
    with pytest.raises(hf.TokenRejected):  # what is forged is not even given a look at the value
        await client.redeem("forged", object())
    await client.redeem(token, None)
    assert await sent(database) == [b"null"]


async def test_k4_no_token_and_no_key_is_ever_told(
    processes: Processes, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Proxy(dsn) as proxy:
        client = await processes.client(dsn=proxy.dsn, settings=SIGNED)
        await client.start(decide(), id="w")
        token = client.token("w", DECISIONS, ttl=60)
        proxy.lose_reply("redeem_token")
        await client.redeem(token, "yes")
        with pytest.raises(hf.TokenRejected) as caught:
            await client.redeem(token, "yes")
        told = [
            caplog.text,
            repr(client),
            repr(client._tokens),
            repr(SIGNED),
            repr(caught.value),
            str(caught.value),
        ]
        await processes.leave(client)
    assert token not in "\n".join(told)
    assert repr(KEY) not in "\n".join(told)
    assert issubclass(hf.TokenRejected, PermissionError)
