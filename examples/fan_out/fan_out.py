"""Many things at once: with ordinary asyncio, and with `each`, whose outcomes come as they complete.

Every branch of the `gather` makes several durable calls, one after another, in whatever order they finish.
`each` calls a step or a workflow with every item of an iterable, however long, so many at once as it is told;
what fails is an outcome too. After a crash all of them go on, each from where it was: no step that was
recorded runs again, and outcomes come in the order in which they came before.

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


@hf.workflow
async def study(page: int) -> int:
    """One page, as a workflow of its own."""
    if page == 7:
        raise LookupError("torn out")
    return await count_words(await download(page))


@hf.workflow
async def long_survey(pages: int, at_once: int = 4) -> tuple[int, list[str]]:
    """The same with a workflow for each page, and with pages that cannot be read."""
    words, unread = 0, []
    async for page in hf.each(study, range(pages), limit=at_once):
        if page.error is None:
            words += page.value
        else:
            unread.append(f"page {page.item}: {page.error}")
    return words, unread


async def main() -> None:
    async with hf.Runtime(workflows=[survey, study, long_survey]) as rt:
        handle = await rt.start(survey(12))
        async for page in handle.read(done):
            print(page)
        print(await handle.result(), "words")
        words, unread = await rt.run(long_survey(12))
        print(words, "words without", *unread)


if __name__ == "__main__":
    asyncio.run(main())
