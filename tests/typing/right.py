"""What type checkers must infer. Checked with everything else by `mypy src tests`; never run."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, assert_type

import asyncpg

import holdfast as hf


@dataclass
class Order:
    number: int


payments = hf.Topic[Order]("payment")
pay_url = hf.Event[str]("pay_url")
refusals = hf.Topic[str]("refusal")
tokens = hf.Stream[int]("tokens")
prices = hf.Topic[Order, float]("price")
quotes = hf.Topic[Order, str]("quote")
lines = hf.Stream[str]("lines")


@hf.step
async def fetch(url: str) -> int:
    return len(url)


@hf.step(attempts=3, retry_on=(OSError, ValueError), timeout=timedelta(seconds=3))
async def fetch_often(url: str) -> int:
    return len(url)


@hf.step
def compute(n: int, *, factor: float = 1.0) -> float:
    return n * factor


@hf.transaction
async def book(connection: asyncpg.Connection[asyncpg.Record], account: int) -> bool:
    return account > 0


def plain(n: int) -> str:
    return str(n)


plain_step = hf.step(plain, attempts=5)


async def numbers() -> AsyncIterator[int]:
    yield 1


@hf.workflow
async def checkout(order: Order, *, note: str = "") -> str:
    assert_type(fetch("x"), hf.Wait[int])
    assert_type(await fetch("x"), int)
    assert_type(await fetch_often("x"), int)
    assert_type(await compute(1, factor=2.0), float)
    assert_type(await plain_step(3), str)
    assert_type(await book(3), bool)
    assert_type(payments.recv(), hf.Wait[Order])
    assert_type(hf.each(fetch, ["x"], limit=3), hf.Each[str, int])
    async for found in hf.each(compute, range(3)):
        assert_type(found, hf.Outcome[int, float])
        assert_type(found.item, int)
        assert_type(found.value, float)
        assert_type(found.error, Exception | None)
    assert_type(hf.each(book, [3]), hf.Each[int, bool])
    assert_type(hf.each(checkout, [order]), hf.Each[Order, str])
    assert_type(hf.each(hf.WorkflowRef[[int], bytes]("elsewhere"), iter([3])), hf.Each[int, bytes])
    assert_type(await payments.recv(timeout=3), Order)
    assert_type(await payments.recv(timeout=timedelta(minutes=3), default=None), Order | None)
    assert_type(await hf.recv("t", type=int), int)
    assert_type(await hf.recv("t", timeout=1, default=None, type=int), int | None)
    assert_type(await hf.recv(payments), Order)
    assert_type(await pay_url.get("other", timeout=1, default=3), str | int)
    assert_type(await hf.get_event("other", pay_url), str)
    await pay_url.set("https://…")
    await payments.send("other", order, "a key")
    await tokens.write(1, 2, 3)
    assert_type(tokens.trim(2), hf.Wait[int])
    assert_type(await hf.trim_stream("tokens", 2), int)
    assert_type(tokens.read("other", last=3), hf.Reader[int])
    assert_type(hf.read_stream("other", tokens, follow=False), hf.Reader[int])
    assert_type(hf.read_stream("other", "tokens", after=3, type=str), hf.Reader[str])
    assert_type(anext(tokens.read("other")), hf.Wait[int])
    assert_type(anext(tokens.read("other").items()), hf.Wait[hf.Item[int]])
    assert_type(anext(pay_url.watch("other")), hf.Wait[str])
    async for number in tokens.pipe(numbers(), every=timedelta(seconds=0.1), most=10):
        assert_type(number, int)
    async for state in pay_url.watch("other"):
        assert_type(state, str)
    async for payment in payments:
        assert_type(payment, Order)
    assert_type(hf.recv((payments, refusals)), hf.Wait[Order | str])
    assert_type(await hf.recv((payments, refusals), timeout=1, default=None), Order | str | None)
    assert_type(await hf.recv([payments, payments]), Order)
    assert_type(await hf.recv(["a", payments, refusals]), Any)
    await select(order)
    assert_type(prices, hf.Topic[Order, float])
    assert_type(prices.recv(), hf.Wait[Order])
    assert_type(prices.ask("other", order, timeout=3), hf.Wait[float])
    assert_type(await payments.ask("other", order), object)
    async for request in prices.requests():
        assert_type(request, hf.Request[Order, float])
        assert_type(request.value, Order)
        assert_type(request.reply(2.5), hf.Wait[None])
        await request.reject("not for sale")
        await request.reject(LookupError("not for sale"))
    async for untyped in payments.requests():
        await untyped.reply("anything")
    child = await hf.start(checkout(order, note="again"), attributes={"a": 1}, on_existing="raise")
    assert_type(child, hf.Handle[str])
    assert_type(await child.result(), str)
    assert_type(await checkout(order), str)
    assert_type(hf.patched("change"), hf.Wait[bool])
    assert_type(await hf.patched("change"), bool)
    if not note:
        hf.continue_as(checkout(order, note="go on"))  # never returns: nothing is missing here
    return note


async def select(order: Order) -> str:
    assert_type(hf.first(fetch("x")), hf.Wait[tuple[Literal[0], int]])
    two = await hf.first(payments.recv(), refusals.recv())
    assert_type(two, tuple[Literal[0], Order] | tuple[Literal[1], str])
    timed = await hf.first(payments.recv(), pay_url.get("other"), timeout=3)
    assert_type(timed, tuple[Literal[0], Order] | tuple[Literal[1], str] | None)
    handle = await hf.start(checkout(order))
    match await hf.first(
        handle.result(), checkout(order), fetch("x"), hf.sleep(1), timeout=timedelta(days=1)
    ):
        case (0 | 1, text):
            assert_type(text, str)
        case (2, number):
            assert_type(number, int)
        case (3, nothing):
            assert_type(nothing, None)
        case None:
            pass
    match two:
        case (0, payment):
            assert_type(payment, Order)
        case (1, why):
            assert_type(why, str)
    assert_type(await hf.first(*[fetch(url) for url in "abc"]), tuple[int, int])
    assert_type(await hf.first(*[fetch(url) for url in "abc"], timeout=1), tuple[int, int] | None)
    assert_type(await hf.first_of(a=fetch("x"), b=fetch("y")), tuple[str, int])
    assert_type(await hf.first_of(timeout=1, a=fetch("x"), b=fetch("y")), tuple[str, int] | None)
    async with hf.timeout(timedelta(minutes=1)) as limit:
        await payments.recv()
    assert_type(limit.expired, bool)
    return ""


@hf.workflow(max_recoveries=3)
async def forever(month: int) -> str:
    hf.continue_as(forever(month + 1))


async def outside(rt: hf.Runtime, client: hf.Client) -> None:
    assert_type(checkout(Order(1)), hf.Call[str])
    handle = await rt.start(checkout(Order(1), note="x"), id="one")
    assert_type(handle, hf.Handle[str])
    assert_type(await handle.result(timeout=3), str)
    assert_type(await rt.run(checkout(Order(1))), str)
    assert_type(await handle.get(pay_url, timeout=3), str)
    assert_type(await handle.get(pay_url, timeout=3, default=None), str | None)
    assert_type(rt.handle(checkout, "one"), hf.Handle[str])
    assert_type(rt.handle("one"), hf.Handle[Any])
    assert_type(handle.read(tokens), hf.Reader[int])
    assert_type(await handle.read(tokens).collect(), list[int])
    async for item in handle.read(tokens).items():
        assert_type(item, hf.Item[int])
    assert_type(handle.watch(pay_url), hf.Watch[str])
    assert_type(client.read_stream("one", tokens, after=3), hf.Reader[int])
    assert_type(handle.read(tokens, last=3, follow=False), hf.Reader[int])
    assert_type(await rt.trim_stream("one", tokens, before=3), int)
    assert_type(await client.get_event("one", pay_url), str)
    await handle.send(payments, Order(2))
    await handle.send(prices, Order(2))
    assert_type(await handle.ask(prices, Order(2), timeout=3), float)
    assert_type(await client.ask("one", prices, Order(2)), float)
    assert_type(await rt.ask("one", payments, Order(2)), object)
    assert_type(await rt.ask("one", "price", 3, timeout=timedelta(seconds=3), type=float), float)
    assert_type(await client.get_event("one", "price", type=int), int)
    assert_type(await client.get_event("one", "price", timeout=3, default=None, type=int), int | None)
    assert_type(await client.get_event("one", "price", type=int | str), Any)
    assert_type(await client.get_event("one", "price"), Any)
    assert_type(client.watch_event("one", "price", type=int), hf.Watch[int])
    assert_type(client.read_stream("one", "tokens", after=3, type=int), hf.Reader[int])
    assert_type(client.read_stream("one", "tokens"), hf.Reader[Any])
    assert_type(await handle.get("price", timeout=3, type=int), int)
    assert_type(await handle.get("price", timeout=3, default=None, type=int), int | None)
    assert_type(handle.watch("price", int), hf.Watch[int])
    assert_type(handle.read("tokens", type=int), hf.Reader[int])
    assert_type(await handle.ask("price", 3, type=float), float)
    assert_type(rt.token(handle, prices, ttl=3600), str)
    assert_type(client.token("one", "price", ttl=timedelta(days=1)), str)
    await client.redeem("…", Order(2))
    assert_type(await handle.resume(), bool)
    assert_type(await handle.fork(from_step="3", id="two"), hf.Handle[str])
    assert_type(await rt.fork("one", from_step="3"), hf.Handle[Any])
    assert_type(await rt.resume("one"), bool)
    assert_type(await rt.prune(timedelta(days=30), batch=100), int)
    page = await client.list(status=["ERROR", hf.Status.PENDING], attributes={"customer": 17}, limit=10)
    assert_type(page, hf.Page[hf.WorkflowStatus])
    assert_type(page[0], hf.WorkflowStatus)
    assert_type((await client.list(cursor=page.cursor)).cursor, str | None)
    assert_type((await client.messages("one", after=3))[0], hf.MessageInfo)
    assert_type((await client.streams("one"))[0], hf.StreamInfo)
    remote = hf.WorkflowRef[[Order], int]("elsewhere")
    assert_type(await client.start(remote(Order(3))), hf.Handle[int])
    existing: Literal["attach", "raise"] = "raise"
    await client.start(remote(Order(3)), on_existing=existing)
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect()
    assert_type(await rt.start(checkout(Order(1)), id="one", conn=connection), hf.Handle[str])
    await client.send("one", Order(2), payments, key="k", conn=connection)
    assert_type(await fetch("outside a workflow a step just runs"), int)
    await in_wide_places(rt, handle)


async def in_wide_places(rt: hf.Runtime, handle: hf.Handle[str]) -> None:
    """Where more would do: mypy infers from the outside in."""
    print(await rt.run(checkout(Order(1))), await rt.start(checkout(Order(1))))
    print(await handle.get(pay_url), await rt.get_event("one", pay_url))
    print(await handle.ask(prices, Order(1)), await rt.ask("one", prices, Order(1)))
    chunks: AsyncIterable[str | bytes] = handle.read(lines)
    either: str | None = await handle.ask(quotes, Order(1))
    any_call: hf.Call[object] = checkout(Order(1))
    print(chunks, either, any_call)
