"""A workflow that lives for years: each month is an execution of its own, and the code changes meanwhile.

`continue_as` ends a month and begins the next one under the same id: the journal stays small, messages not
yet read and the event that a page shows go on. `patched` guards a change for subscriptions that are in the
middle of a month when the new code is deployed: those finish their month the old way, and every later month
goes the new way. After a month nothing old is left, and the guard can be taken out.

    python examples/long_lived/subscription.py

and from another terminal, in the same directory:

    holdfast event subscription-1 account
    holdfast send subscription-1 order '{"plan": "cancelled"}'
"""

import asyncio

import msgspec

import holdfast as hf


class Account(msgspec.Struct):
    customer: str
    plan: str
    month: int = 1
    paid: int = 0


class Order(msgspec.Struct):
    plan: str


MONTH = 30 * 24 * 3600.0
PRICES = {"basic": 5, "pro": 20}

orders = hf.Topic[Order]("order")
account_event = hf.Event[Account]("account")
invoices = hf.Stream[str]("invoices")


@hf.step(attempts=5)
async def charge(customer: str, amount: int, month: int) -> str:
    return f"{customer} paid {amount} for month {month}"


@hf.step
async def thank(customer: str) -> str:
    return f"thank you, {customer}"


@hf.workflow
async def subscription(account: Account, month_lasts: float = MONTH) -> Account:
    """One month: charges, listens for orders until the month is over, and goes on with the next."""
    price = PRICES[account.plan]
    await invoices.write(await charge(account.customer, price, account.month))
    if await hf.patched("thank-you-letters"):
        await invoices.write(await thank(account.customer))
    account.paid += price
    await account_event.set(account)
    while account.plan != "cancelled":
        order = await next_order(month_lasts)
        if order is None:
            account.month += 1
            hf.continue_as(subscription(account, month_lasts))
        account.plan = order.plan
        await account_event.set(account)
    return account


async def next_order(month_lasts: float) -> Order | None:
    """The next order of this month. (For brevity, an order begins the month's wait anew.)"""
    return await orders.recv(timeout=month_lasts, default=None)


async def main() -> None:
    async with hf.Runtime(workflows=[subscription]) as rt:
        first = subscription(Account("ada", "basic"), month_lasts=10)
        handle = await rt.start(first, id="subscription-1")
        async for invoice in handle.read(invoices):
            print(invoice, flush=True)
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
