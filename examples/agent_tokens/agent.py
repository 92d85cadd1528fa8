"""An agent whose tokens are read while they come: from inside a step, by any process, through a crash.

A language model's answer arrives token by token and is not free. The step that asks for it pipes the tokens
through a stream: each goes on to the step at once, and to the readers within 50 ms, several in one commit.
What the step returns is recorded, so a crash after the step never asks again. A try that fails in the middle
does: the reader then sees the tokens of both tries, and `Item.attempt` tells them apart.

    python examples/agent_tokens/agent.py 'What is durable?'
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import holdfast as hf

tokens = hf.Stream[str]("tokens")
phase = hf.Event[str]("phase")

ANSWERS = {
    "plan": "look it up , then explain",
    "answer": "what is recorded outlives whoever recorded it",
}


async def model(prompt: str) -> AsyncIterator[str]:
    """Stands for a language model's streaming API."""
    for word in ANSWERS["plan" if prompt.startswith("Plan") else "answer"].split():
        await asyncio.sleep(0.01)
        yield word


@hf.step(attempts=3)
async def complete(prompt: str) -> str:
    """Asks the model; tokens are on their way to the readers while the next ones come."""
    return " ".join([word async for word in tokens.pipe(model(prompt))])


@hf.workflow
async def agent(question: str) -> str:
    await phase.set("planning")
    plan = await complete(f"Plan: {question}")
    await tokens.write("\n")
    await phase.set("answering")
    answer = await complete(f"{question} Follow this plan: {plan}")
    await tokens.close()
    return answer


async def main(question: str = "What is durable?") -> str:
    """Runs the agent and prints tokens as they come."""
    async with hf.Runtime(workflows=[agent]) as rt:
        handle = await rt.start(agent(question))
        async for word in handle.read(tokens):
            print(word, end="" if word == "\n" else " ", flush=True)
        print()
        return await handle.result()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:2]))
