"""What type checkers must refuse: each line with its error. Read by test_typing; never run."""

import holdfast as hf

payments = hf.Topic[int]("payment")
pay_url = hf.Event[str]("pay_url")
tokens = hf.Stream[int]("tokens")


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
    hf.each(fetch, [3])  # error: arg-type
    hf.each(len, ["x"])  # error: arg-type
    text: str = await payments.recv()  # error: assignment
    number: int = await payments.recv(timeout=1, default=None)  # error: arg-type
    return url + text + str(number)


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
    await rt.start(checkout(wrong), on_existing="ignore")  # error: arg-type
