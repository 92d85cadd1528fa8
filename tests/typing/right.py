"""What type checkers must infer. Checked with everything else by `mypy src tests`; never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
tokens = hf.Stream[int]("tokens")


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
    await tokens.write(1, 2, 3)
    async for payment in payments:
        assert_type(payment, Order)
    child = await hf.start(checkout(order, note="again"))
    assert_type(child, hf.Handle[str])
    assert_type(await child.result(), str)
    assert_type(await checkout(order), str)
    return note


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
    assert_type(handle.watch(pay_url), AsyncIterator[str])
    assert_type(client.read_stream("one", tokens, after=3), hf.Reader[int])
    assert_type(await client.get_event("one", pay_url), str)
    await handle.send(payments, Order(2))
    remote = hf.WorkflowRef[[Order], int]("elsewhere")
    assert_type(await client.start(remote(Order(3))), hf.Handle[int])
    existing: Literal["attach", "raise"] = "raise"
    await client.start(remote(Order(3)), on_existing=existing)
    assert_type(await fetch("outside a workflow a step just runs"), int)
