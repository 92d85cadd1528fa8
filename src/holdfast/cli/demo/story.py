"""What happens in the demonstration, from first process to last check. Only the goods are made up."""

import argparse
import asyncio
import os
import time

import msgspec

from holdfast import Client, Handle, Item, WorkflowRef
from holdfast.cli.demo.cast import Actor, Cast
from holdfast.cli.demo.place import a_database
from holdfast.cli.demo.report import Report
from holdfast.cli.demo.shop import NAME, PACKING, RUN, Order, Progress, Receipt, pay_url, progress
from holdfast.cli.exits import Exit
from holdfast.cli.screen import Screen

checkout: WorkflowRef[[Order], Receipt] = WorkflowRef[[Order], Receipt](NAME)

BOOK = Order("a book", 30, 2)
SHELF = Order("a shelf", 120, 5)
FATAL = 3
"""The parcel in the middle of which the shop is killed."""


class Seen(msgspec.Struct):
    """What the customer got to see of one checkout."""

    id: str
    receipt: Receipt
    items: list[Item[Progress]]


async def run(given: argparse.Namespace, screen: Screen) -> int:
    """Plays the demonstration and says whether all went as promised."""
    report = Report(screen)
    async with a_database(given.dsn) as database:
        report.say("demo", f"database: {database.words}", took=report.elapsed, of="up")
        environment = {**database.environment, "HOLDFAST_DEMO_SCHEMA": given.schema, "HOLDFAST_DEMO_RUN": RUN}
        async with (
            Client(database.dsn, schema=given.schema) as client,
            Cast(environment, report.hear) as cast,
        ):
            report.say("demo", f"client: this process, {os.getpid()}")
            good = await Story(client, cast, report).play()
    report.end(good)
    if database.stays:
        screen.talk(f"its workflows are still there to look at: holdfast list --schema {given.schema}")
    return Exit.OK if good else Exit.FAILED


class Story:
    """Two checkouts."""

    def __init__(self, client: Client, cast: Cast, report: Report) -> None:
        self._client = client
        self._cast = cast
        self._report = report

    async def play(self) -> bool:
        """From the first process to the last check."""
        report = self._report
        shop, bank = await asyncio.gather(
            self._cast.call("shop 1", "shop", str(FATAL)), self._cast.call("bank", "bank")
        )
        for actor, does in ((shop, "runs the workflow"), (bank, "will send the payments")):
            await actor.until("ready")
            report.say(actor.name, f"process {actor.pid} {does}")

        report.title("1  A checkout: its event is awaited, it gets a message, its stream is followed live")
        first = await self._follow(await self._begin(BOOK, 1, bank))

        report.title("2  Another one, and kill -9 in the middle of it")
        handle = await self._begin(SHELF, 2, bank)
        async with asyncio.TaskGroup() as group:
            following = group.create_task(self._follow(handle), name="customer")
            heir = await self._kill(shop, handle.id)
        second = following.result()

        report.title("Which process has run what")
        report.table(handle.id, shop, heir)
        report.title("Results")
        for seen in (first, second):
            report.result(seen.id, seen.receipt)
        return all(
            [self._check(BOOK, first), self._check(SHELF, second), self._check_steps(handle.id, shop, heir)]
        )

    async def _begin(self, order: Order, number: int, bank: Actor) -> Handle[Receipt]:
        """Starts a checkout, awaits where to pay, and has the bank pay."""
        client, report = self._client, self._report
        begun = time.time()
        handle = await client.start(checkout(order), id=f"order-{RUN}-{number}")
        report.say("client", f"started {handle.id}", took=time.time() - begun, of="call → committed")
        session = await handle.get(pay_url, timeout=10)
        report.say(
            "client", f"event pay_url = {session.url}", took=time.time() - session.at, of="set → awaited here"
        )
        await bank.order(id=handle.id, amount=order.price, key=f"payment-{number}")
        return handle

    async def _follow(self, handle: Handle[Receipt]) -> Seen:
        """Follows the live stream to its end, then awaits the result."""
        items = []
        async for item in handle.read(progress).items():
            line = item.value
            what = f"stream[{item.offset}]  {line.text}, says process {line.pid}"
            self._report.say("client", what, took=time.time() - line.at, of="write → read here")
            items.append(item)
        receipt = await handle.result(timeout=10)
        self._report.say(
            "client", f"result: {len(receipt.parcels)} parcels, {receipt.paid} € paid", style="bold"
        )
        return Seen(handle.id, receipt, items)

    async def _kill(self, shop: Actor, workflow: str) -> Actor:
        """Kills the shop in the middle of a step, and starts another one."""
        report = self._report
        await shop.until("step", step=f"pack {FATAL}", workflow=workflow)
        await asyncio.sleep(PACKING / 2)
        killed = time.time()
        code = await shop.kill()
        report.say(
            "demo", f"kill -9 {shop.pid} (exit {code}), in the middle of pack {FATAL}", style="bold red"
        )
        heir = await self._cast.call("shop 2", "shop")
        await heir.until("ready")
        report.say(heir.name, f"process {heir.pid} is there", took=time.time() - killed, of="since the kill")
        resumed = await heir.until("step", workflow=workflow)
        report.say(heir.name, "the workflow goes on", took=resumed["at"] - killed, of="since the kill")
        return heir

    def _check(self, order: Order, seen: Seen) -> bool:
        """Is the result right, and is nothing missing or doubled in the stream?"""
        parcels = [f"parcel-{number}" for number in range(1, order.parcels + 1)]
        right = seen.receipt == Receipt(order.item, order.price, 1, parcels)
        self._report.check(
            f"{order.item}: the receipt is right; one payment was taken of two deliveries", right
        )
        lines = [f"{order.price} € received"]
        lines += [f"parcel {number} of {order.parcels} packed" for number in range(1, order.parcels + 1)]
        whole = [(item.offset, item.value.text) for item in seen.items] == list(enumerate(lines))
        self._report.check(
            f"{order.item}: {len(lines)} stream values, none missing, none twice, in order", whole
        )
        return right and whole

    def _check_steps(self, workflow_id: str, killed: Actor, heir: Actor) -> bool:
        """Did what was recorded before the kill run in the killed process only, the rest only in its heir?"""
        runs = self._report.steps
        found = {
            step: (runs[workflow_id, step, killed.pid], runs[workflow_id, step, heir.pid])
            for step in self._report.names(workflow_id)
        }
        before = ["reserve", "open_session", "settle", *(f"pack {n}" for n in range(1, FATAL))]
        after = [f"pack {n}" for n in range(FATAL + 1, SHELF.parcels + 1)]
        wanted = dict.fromkeys(before, (1, 0)) | {f"pack {FATAL}": (1, 1)} | dict.fromkeys(after, (0, 1))
        self._report.check("what was recorded before the kill has not run again", found == wanted)
        return found == wanted
