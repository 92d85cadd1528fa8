"""What type checkers must refuse: each line with its error. Read by test_typing; never run."""

import holdfast as hf

payments = hf.Topic[int]("payment")
pay_url = hf.Event[str]("pay_url")
tokens = hf.Stream[int]("tokens")
prices = hf.Topic[int, float]("price")


@hf.step
async def fetch(url: str) -> int:
    return len(url)


@hf.workflow
async def checkout(order: int) -> str:
    await fetch(3)  # error: arg-type
    await fetch()  # error: call-arg
    url: str = await fetch("x")  # error: assignment
    await payments.send("other", "not a number")  # error: arg-type
    await pay_url.set(17)  # error: arg-type
    await tokens.write(1, "two")  # error: arg-type
    tokens.read("other", last="3")  # error: arg-type
    tokens.pipe([1, 2])  # error: arg-type
    await tokens.trim("all")  # error: arg-type
    hf.each(fetch, [3])  # error: arg-type
    hf.each(len, ["x"])  # error: arg-type
    text: str = await payments.recv()  # error: assignment
    number: int = await payments.recv(timeout=1, default=None)  # error: arg-type
    await select()
    await hf.patched(17)  # error: arg-type
    if order:
        hf.continue_as(fetch("x"))  # error: arg-type
    elif number:
        hf.continue_as(checkout)  # error: arg-type
    await prices.ask("other", "not a number")  # error: arg-type
    price: str = await prices.ask("other", 3)  # error: assignment
    async for request in prices.requests():
        await request.reply("not a price")  # error: arg-type
        await request.reject(3)  # error: arg-type
    return url + text + str(number) + price


async def select() -> None:
    hf.first(3)  # error: call-overload
    hf.first(payments.recv(), 3)  # error: call-overload
    hf.first(payments.recv(), timeout="soon")  # error: call-overload
    hf.first_of(payments.recv())  # error: call-overload
    index, value = await hf.first(payments.recv(), timeout=1)  # error: misc
    wrong: tuple[int, str] = await hf.first(payments.recv())  # error: arg-type
    async with hf.timeout("soon"):  # error: arg-type
        print(index, value, wrong)


@hf.workflow  # error: arg-type
def not_async(order: int) -> str:
    return str(order)


async def outside(rt: hf.Runtime) -> None:
    await rt.start(checkout("text"))  # error: arg-type
    await rt.start(checkout)  # error: arg-type
    number: int = await rt.run(checkout(3))  # error: arg-type
    handle = await rt.start(checkout(3))
    await handle.send(payments, number, topic="x")  # error: call-overload
    wrong: int = await handle.get(pay_url)  # error: arg-type
    await handle.ask(prices, "not a number")  # error: misc
    price: str = await rt.ask("one", prices, 3)  # error: arg-type
    rt.token(price, prices)  # error: call-arg
    rt.token(3, prices, ttl=1)  # error: arg-type
    await rt.start(checkout(wrong), on_existing="ignore")  # error: arg-type
    text: str = await rt.start(checkout(3), conn=object())  # error: assignment
    await rt.run(checkout(3), conn=text)  # error: call-arg
    await rt.start(checkout(3), attributes=[1])  # error: arg-type
    await rt.fork("one")  # error: call-arg
    await rt.list("checkout")  # error: call-arg
    await handle.fork(from_step=3)  # error: arg-type
