"""The shop: the checkout workflow, and a process that runs it until its stdin is closed.

Every run of a step's body is told on stdout, flushed before it begins, so that a kill -9 cannot hide one.
"""

import asyncio
import os
import time
from uuid import uuid4

import msgspec

import holdfast as hf
from holdfast.cli.demo.stage import orders, tell

PACKING = 0.2
"""Seconds that packing a parcel takes."""

DAWDLING = 30.0
"""Seconds for the parcel in the middle of which this process is killed: enough on a slow machine too."""

fatal: int = 0
"""The number of that parcel; 0 if there is none."""

RUN = os.environ.get("HOLDFAST_DEMO_RUN") or uuid4().hex[:6]
"""Which run of the demonstration this is, in all its processes."""

NAME = f"checkout-{RUN}"
"""The workflow's name, so that two demonstrations in one database leave each other's checkouts alone."""


class Order(msgspec.Struct, frozen=True):
    """What somebody wants to buy."""

    item: str
    price: int
    parcels: int


class Session(msgspec.Struct, frozen=True):
    """Where to pay, and when the shop began to publish it."""

    url: str
    at: float


class Payment(msgspec.Struct, frozen=True):
    """What the bank says, and when it began to say it."""

    amount: int
    at: float


class Progress(msgspec.Struct, frozen=True):
    """A line for the customer: which process began to write it, and when."""

    text: str
    pid: int
    at: float


class Receipt(msgspec.Struct, frozen=True):
    """How a checkout ends."""

    item: str
    paid: int
    payments: int
    parcels: list[str]


pay_url: hf.Event[Session] = hf.Event[Session]("pay_url")
payments: hf.Topic[Payment] = hf.Topic[Payment]("payment")
progress: hf.Stream[Progress] = hf.Stream[Progress]("progress")


def _runs(step: str, *, message_at: float | None = None) -> None:
    tell("step", step=step, workflow=hf.current().workflow_id, message_at=message_at)


@hf.step
async def reserve(order: Order) -> None:
    """Puts the goods aside."""
    _runs("reserve")


@hf.step
async def open_session(order: Order) -> str:
    """Asks the bank for a page to pay at."""
    _runs("open_session")
    return f"https://bank.example/pay/{order.price}"


@hf.step
async def settle(payment: Payment) -> None:
    """Books the payment."""
    _runs("settle", message_at=payment.at)


@hf.step
async def pack(number: int) -> str:
    """Packs one parcel, which takes its time."""
    _runs(f"pack {number}")
    await asyncio.sleep(DAWDLING if number == fatal else PACKING)
    return f"parcel-{number}"


async def say(text: str) -> None:
    """Writes to the live stream.

    Time and process are only written down, nothing is decided upon them: a replay writes nothing, so what was
    written first is what stays.
    """
    await progress.write(Progress(text, os.getpid(), time.time()))


@hf.workflow(name=NAME)
async def checkout(order: Order) -> Receipt:
    """The checkout of the documentation: publish where to pay, wait for the payment, pack."""
    await reserve(order)
    url = await open_session(order)
    await pay_url.set(Session(url, time.time()))
    payment = await payments.recv(timeout=60)
    await settle(payment)
    await say(f"{payment.amount} € received")
    parcels = []
    for number in range(1, order.parcels + 1):
        parcels.append(await pack(number))
        await say(f"parcel {number} of {order.parcels} packed")
    second = await payments.recv(timeout=0, default=None)
    return Receipt(order.item, payment.amount, 1 if second is None else 2, parcels)


async def main(killed_at: str = "0") -> None:
    """Runs workflows until stdin is closed; dawdles over the parcel `killed_at`, so as to be killed there."""
    global fatal
    fatal = int(killed_at)
    async with hf.Runtime(schema=os.environ["HOLDFAST_DEMO_SCHEMA"], workflows=[checkout]):
        tell("ready")
        async for _ in orders():
            pass
