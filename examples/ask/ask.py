"""Asking a workflow: requests that it answers, one by one, with what it knows by then.

A desk sells the seats of a train, and is the only one who does: so no seat is sold twice, and no lock is
needed. Travellers ask it, from outside or from workflows of their own; each has one answer, a seat or the
reason why not.

    python examples/ask/ask.py
"""

import asyncio

import msgspec

import holdfast as hf


class SoldOut(Exception):
    """There is no such seat left."""


class Booking(msgspec.Struct):
    name: str
    by_the_window: bool = False


class Seat(msgspec.Struct):
    number: int


bookings = hf.Topic[Booking, Seat]("booking")


@hf.workflow
async def desk(seats: int) -> list[str]:
    """Sells seats until there are none; every third is by the window."""
    taken: dict[int, str] = {}
    async for request in bookings.requests():
        booking = request.value
        free = [n for n in range(seats) if n not in taken and (n % 3 == 0 or not booking.by_the_window)]
        if not free:
            await request.reject(SoldOut(f"nothing left for {booking.name}"))
            continue
        taken[free[-1]] = booking.name
        await request.reply(Seat(free[-1]))
        if len(taken) == seats:
            break
    return [taken[number] for number in range(seats)]


@hf.workflow
async def journey(desk_id: str, name: str) -> str:
    """Wants to sit by the window, and takes what there is; asks exactly once, whatever crashes in between."""
    try:
        seat = await bookings.ask(desk_id, Booking(name, by_the_window=True), timeout=60)
    except SoldOut:
        seat = await bookings.ask(desk_id, Booking(name), timeout=60)
    return f"{name} sits on {seat.number}"


async def main() -> list[str]:
    async with hf.Runtime(workflows=[desk, journey], errors=[SoldOut]) as rt:
        handle = await rt.start(desk(4))
        seat = await handle.ask(bookings, Booking("ada"), timeout=10)
        print(f"ada sits on {seat.number}")
        for name in ("bob", "cem"):
            print(await rt.run(journey(handle.id, name)))
        try:
            await handle.ask(bookings, Booking("dora", by_the_window=True), timeout=10)
        except SoldOut as error:
            print(error)
        print(await rt.run(journey(handle.id, "eve")))
        return await handle.result()


if __name__ == "__main__":
    print(asyncio.run(main()))
