"""A human in the loop: a workflow asks, waits for days if it must, reminds, and gives up at last.

What it asks is an event, so that a page can show it at any time. What the human says is a message, so that
it is not lost if nobody is listening just now. The waits are durable: deploy as often as you like.

Whoever is to decide gets a link by mail, with a token in it that sends one decision and nothing else, once.

    python examples/approval/approval.py

and answer from another terminal, in the same directory:

    holdfast event expense-1 question
    holdfast send expense-1 decision '{"approved": true, "by": "ada"}'
"""

import asyncio
import os
import secrets
from datetime import timedelta

import msgspec

import holdfast as hf


class Expense(msgspec.Struct):
    what: str
    amount: int


class Question(msgspec.Struct):
    text: str
    reminders: int


class Decision(msgspec.Struct):
    approved: bool
    by: str


question = hf.Event[Question]("question")
decisions = hf.Topic[Decision]("decision")


@hf.step(attempts=3)
async def pay_out(expense: Expense) -> str:
    return f"paid {expense.amount} for {expense.what}"


@hf.workflow
async def approval(expense: Expense, patience: float = 24 * 3600, reminders: int = 2) -> str:
    """Asks for a decision; asks again after `patience` seconds, `reminders` times."""
    for reminder in range(reminders + 1):
        await question.set(Question(f"{expense.amount} for {expense.what}?", reminder))
        decision = await decisions.recv(timeout=patience, default=None)
        if decision is not None:
            break
    else:
        return "nobody decided"
    return await pay_out(expense) if decision.approved else f"refused by {decision.by}"


# A key of one's own outlives the process, and is the same in all of them.
KEY = os.environ.get("APPROVAL_KEY", "").encode() or secrets.token_bytes(32)
settings = hf.Settings(hmac_keys=[KEY])


def link_for(client: hf.Client, expense_id: str) -> str:
    """What stands in the mail: no log-in needed, nothing is stored, and nobody can make one up."""
    token = client.token(expense_id, decisions, ttl=timedelta(days=7))
    return f"https://expenses.example/decide#{token}"


async def decide(client: hf.Client, token: str, decision: Decision) -> str:
    """What the page behind the link does when its button is pressed. Not when it is opened: programs that
    look into mails open links.
    """
    try:
        await client.redeem(token, decision)
    except hf.TokenRejected:
        return "this link is not valid, or no longer"
    return "thank you"


async def main() -> None:
    async with hf.Runtime(workflows=[approval], settings=settings) as rt:
        handle = await rt.start(approval(Expense("a chair", 200), patience=60), id="expense-1")
        print(f"mail to ada: {link_for(rt, handle.id)}", flush=True)
        async for asked in handle.watch(question):
            print(f"asked ({asked.reminders} reminders): {asked.text}", flush=True)
        print(await handle.result())


if __name__ == "__main__":
    asyncio.run(main())
