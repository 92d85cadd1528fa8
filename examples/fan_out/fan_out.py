"""Many things at once, each a sequence of durable steps, with ordinary asyncio.

Every branch of the `gather` makes several durable calls, one after another, in whatever order they finish.
After a crash the branches go on, each from where it was: no step that was recorded runs again.

    python examples/fan_out/fan_out.py
"""

import asyncio

import holdfast as hf

done = hf.Stream[str]("done")


@hf.step(attempts=3)
async def download(page: int) -> str:
    await asyncio.sleep(0.02 * (page % 3))
    return f"text of page {page}"


@hf.step
def count_words(text: str) -> int:
    """A `def` runs in a thread, so it may take its time."""
    return len(text.split())


@hf.workflow
async def survey(pages: int, at_once: int = 4) -> int:
    """Words on all pages; at most `at_once` pages are worked on at a time."""
    gate = asyncio.Semaphore(at_once)

    async def branch(page: int) -> int:
        async with gate:
            words = await count_words(await download(page))
            await done.write(f"page {page}")
            return words

    return sum(await asyncio.gather(*(branch(page) for page in range(pages))))


async def main() -> None:
    async with hf.Runtime(workflows=[survey]) as rt:
        handle = await rt.start(survey(12))
        async for page in handle.read(done):
            print(page)
        print(await handle.result(), "words")


if __name__ == "__main__":
    asyncio.run(main())
