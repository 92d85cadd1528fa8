"""A checkout behind FastAPI: start it, get the page to pay at, pay by webhook, follow its progress live.

    uvicorn app:app --app-dir examples/checkout_fastapi
    curl localhost:8000/checkout/17 --json '{"item": "a book", "price": 30}'
    curl -N localhost:8000/checkout/17/progress
    curl localhost:8000/webhook/17 --json '{"event_id": "e1", "amount": 30}'

Kill the server between any two of these and start it again: the checkout goes on where it was. A browser
that loses the connection comes back with the id of its last event, to this process or to another, and
misses nothing.
"""

import asyncio
from collections.abc import AsyncIterator

import msgspec
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

import holdfast as hf


class Order(BaseModel):
    item: str
    price: int


class Payment(BaseModel):
    event_id: str
    amount: int


pay_url = hf.Event[str]("pay_url")
payments = hf.Topic[Payment]("payment")
progress = hf.Stream[str]("progress")


@hf.step(attempts=5)
async def open_session(order: Order) -> str:
    return f"https://bank.example/pay/{order.price}"


@hf.step
async def pack(item: str) -> str:
    await asyncio.sleep(0.05)
    return f"{item}, in a box"


@hf.workflow
async def checkout(order: Order) -> str:
    await pay_url.set(await open_session(order))
    await progress.write("waiting for the payment")
    try:
        payment = await payments.recv(timeout=30 * 60)
    except TimeoutError:
        return "expired"
    await progress.write(f"{payment.amount} received")
    await progress.write(await pack(order.item))
    return "paid"


rt = hf.Runtime(workflows=[checkout])
app = FastAPI(lifespan=rt.lifespan)


@app.post("/checkout/{key}")
async def start(key: str, order: Order) -> str:
    """Starts a checkout, once per key however often it is asked for, and answers with the page to pay at."""
    handle = await rt.start(checkout(order), id=key)
    return await handle.get(pay_url, timeout=30)


@app.post("/webhook/{key}", status_code=204)
async def webhook(key: str, payment: Payment) -> None:
    """The bank's notice. Once it has its answer it need not come again; if it does, it is dropped."""
    try:
        await rt.handle(checkout, key).send(payments, payment, key=payment.event_id)
    except hf.WorkflowNotFound:
        raise HTTPException(404, "no such checkout") from None
    except hf.WorkflowFinished:
        raise HTTPException(409, "the checkout is over") from None


@app.get("/checkout/{key}")
async def state(key: str) -> dict[str, str | None]:
    """How it stands."""
    try:
        status = await rt.handle(checkout, key).status()
    except hf.WorkflowNotFound:
        raise HTTPException(404, "no such checkout") from None
    return {"status": status.status, "error": status.error}


@app.get("/checkout/{key}/progress")
async def follow(key: str, last_event_id: int | None = Header(None)) -> StreamingResponse:
    """The progress as server-sent events, live, resumed behind `Last-Event-ID`."""
    try:
        await rt.handle(checkout, key).status()  # a 404 is only possible before the stream has begun
    except hf.WorkflowNotFound:
        raise HTTPException(404, "no such checkout") from None
    reader = rt.handle(checkout, key).read(progress, after=last_event_id)
    return StreamingResponse(server_sent(reader), media_type="text/event-stream")


async def server_sent(reader: hf.Reader[str]) -> AsyncIterator[bytes]:
    """Each value as an event whose id is its offset, and an event `end` when nothing will follow."""
    async with reader:
        async for item in reader.items():
            yield b"id: %d\ndata: %s\n\n" % (item.offset, msgspec.json.encode(item.value))
    yield b"event: end\ndata: {}\n\n"
