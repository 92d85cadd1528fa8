"""Whichever comes first: an order that waits for a decision, a warehouse and a customer who changes his mind.

`first` waits for several things at once and takes exactly one: what loses stays where it was. A message
that was not taken is still in the mailbox; the child that lost goes on. The winner is recorded, so that
after a crash the order goes on down the same road.

    python examples/select/order.py

and answer within a minute from another terminal, in the same directory:

    holdfast send order-1 approval '"ada"'
    holdfast send order-1 cancel '"changed my mind"'
"""

import asyncio

import holdfast as hf

approvals = hf.Topic[str]("approval")
cancels = hf.Topic[str]("cancel")
state = hf.Event[str]("state")


@hf.step
async def find_manager(item: str) -> str:
    return "the manager on duty"


@hf.workflow
async def packing(item: str, seconds: float) -> str:
    """Takes its time, and no notice of what becomes of the order."""
    await hf.sleep(seconds)
    return f"{item}, in a box"


@hf.workflow
async def order(item: str, patience: float = 60, packing_time: float = 10) -> str:
    """Approved, or approved by silence; then packed and shipped, unless it is cancelled before."""
    await state.set("waiting for approval")
    match await hf.first(approvals.recv(), cancels.recv(), hf.sleep(patience)):
        case (0, who):
            await state.set(f"approved by {who}")
        case (1, why):
            return f"cancelled: {why}"
        case _:
            await state.set(f"approved by {await find_manager(item)}")
    name, value = await hf.first_of(cancelled=cancels.recv(), packed=packing(item, packing_time))
    if name == "cancelled":
        return f"cancelled: {value}"
    try:
        async with hf.timeout(packing_time):  # the last moment to say no, whatever is said in between
            while (word := await hf.recv((approvals, cancels))) != "stop":
                await state.set(f"{word} said something, it is being shipped all the same")
    except TimeoutError:
        return f"shipped: {value}"
    return "stopped at the gate"


async def main() -> None:
    async with hf.Runtime(workflows=[order, packing]) as rt:
        handle = await rt.start(order("a chair"), id="order-1")
        async for now in handle.watch(state):
            print(now, flush=True)
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
