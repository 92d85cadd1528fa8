"""The same checkout behind aiohttp: the runtime lives in `cleanup_ctx`, progress goes over a WebSocket.

python examples/checkout_aiohttp/app.py curl -X POST localhost:8080/checkout/17 -d '{"item": "a book",
"price": 30}' curl -X POST localhost:8080/webhook/17 -d '{"event_id": "e1", "amount": 30}'
"""

from collections.abc import AsyncIterator

import msgspec
from aiohttp import web

import holdfast as hf


class Order(msgspec.Struct):
    item: str
    price: int


class Payment(msgspec.Struct):
    event_id: str
    amount: int


pay_url = hf.Event[str]("pay_url")
payments = hf.Topic[Payment]("payment")
progress = hf.Stream[str]("progress")


@hf.step(attempts=5)
async def open_session(order: Order) -> str:
    return f"https://bank.example/pay/{order.price}"


@hf.workflow
async def checkout(order: Order) -> str:
    await pay_url.set(await open_session(order))
    await progress.write("waiting for the payment")
    try:
        payment = await payments.recv(timeout=30 * 60)
    except TimeoutError:
        return "expired"
    await progress.write(f"{payment.amount} received")
    return "paid"


runtime = web.AppKey("runtime", hf.Runtime)
routes = web.RouteTableDef()


@routes.post("/checkout/{key}")
async def start(request: web.Request) -> web.Response:
    """Starts a checkout, once per key, and answers with the page to pay at."""
    order = msgspec.json.decode(await request.read(), type=Order)
    handle = await request.app[runtime].start(checkout(order), id=request.match_info["key"])
    return web.json_response({"pay_url": await handle.get(pay_url, timeout=30)})


@routes.post("/webhook/{key}")
async def webhook(request: web.Request) -> web.Response:
    """The bank's notice; a second delivery of it is dropped."""
    payment = msgspec.json.decode(await request.read(), type=Payment)
    handle = request.app[runtime].handle(checkout, request.match_info["key"])
    try:
        await handle.send(payments, payment, key=payment.event_id)
    except hf.WorkflowNotFound:
        raise web.HTTPNotFound from None
    except hf.WorkflowFinished:
        raise web.HTTPConflict from None
    return web.Response(status=204)


@routes.get("/checkout/{key}/progress")
async def follow(request: web.Request) -> web.WebSocketResponse:
    """The progress, live, as JSON with offsets; `?after=N` resumes behind offset N."""
    after = request.query.get("after")
    handle = request.app[runtime].handle(checkout, request.match_info["key"])
    socket = web.WebSocketResponse(heartbeat=20)
    await socket.prepare(request)
    async with handle.read(progress, after=None if after is None else int(after)) as reader:
        async for item in reader.items():
            await socket.send_json({"offset": item.offset, "value": item.value})
    await socket.close()
    return socket


async def run_workflows(app: web.Application) -> AsyncIterator[None]:
    """The runtime lives as long as the application."""
    async with hf.Runtime(workflows=[checkout]) as rt:
        app[runtime] = rt
        yield


def make_app() -> web.Application:
    app = web.Application()
    app.add_routes(routes)
    app.cleanup_ctx.append(run_workflows)
    return app


if __name__ == "__main__":
    web.run_app(make_app())
