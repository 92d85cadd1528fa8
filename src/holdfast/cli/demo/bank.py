"""The bank: a process that sends payments to checkouts, and knows of them nothing but their ids.

As banks do, it delivers each notice twice. Both carry one key, so the second is dropped.
"""

import os
import time

import holdfast as hf
from holdfast.cli.demo.shop import Payment, payments
from holdfast.cli.demo.stage import orders, tell


async def main() -> None:
    """Pays what it is told to, until stdin is closed."""
    async with hf.Client(schema=os.environ["HOLDFAST_DEMO_SCHEMA"]) as client:
        tell("ready")
        async for order in orders():
            for delivery in (1, 2):
                begun = time.time()
                payment = Payment(order["amount"], begun)
                await client.send(order["id"], payment, payments, key=order["key"])
                tell("sent", delivery=delivery, key=order["key"], took=time.time() - begun)
