"""An order and its workflow in one transaction: never one without the other, and no outbox table to poll.

`conn=` starts the workflow when the caller's transaction commits. The payment comes from plain SQL: a trigger
on the table of payments sends it to the workflow of its order, whoever has written the row, in whatever
language. Both wake the workflow within milliseconds of the commit.
"""

import asyncio
import os
from contextlib import nullcontext

import asyncpg

import holdfast as hf
from holdfast.embedded import Embedded

TABLES = """
create table if not exists orders (id integer primary key, item text not null);
create table if not exists payments (order_id integer not null references orders, amount integer not null);

create or replace function tell_order() returns trigger language plpgsql as $$
begin
    perform holdfast.send('order-' || new.order_id, 'payment', to_jsonb(new.amount));
    return null;
end $$;
create or replace trigger tell_order after insert on payments for each row execute function tell_order();
"""

payments = hf.Topic[int]("payment")


@hf.workflow
async def fulfil(order: int, item: str) -> str:
    amount = await payments.recv(timeout=24 * 3600)
    return f"order {order}: {item} for {amount}"


async def place(rt: hf.Runtime, connection: asyncpg.Connection, order: int, item: str) -> hf.Handle[str]:
    """The row and the workflow, or neither. A SQLAlchemy session goes as `conn=` just as well."""
    async with connection.transaction():
        await connection.execute("insert into orders values ($1, $2)", order, item)
        handle = await rt.start(fulfil(order, item), id=f"order-{order}", conn=connection)
        if not item:
            raise ValueError("an order of nothing")
    return handle


async def shop(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with hf.Runtime(dsn, workflows=[fulfil]) as rt:
        await connection.execute(TABLES)
        order = int(await connection.fetchval("select coalesce(max(id), 16) + 1 from orders"))
        handle = await place(rt, connection, order, "a book")
        try:
            await place(rt, connection, order + 1, "")
        except ValueError:
            gone = rt.handle(f"order-{order + 1}")
            try:
                await gone.status()
            except hf.WorkflowNotFound:
                print(f"order {order + 1}: neither row nor workflow")
        await connection.execute("insert into payments values ($1, 30)", order)
        print(await handle.result(timeout=10))
    await connection.close()


def main() -> None:
    url = os.environ.get("HOLDFAST_DATABASE_URL")
    with nullcontext(url) if url else Embedded() as dsn:
        asyncio.run(shop(dsn))


if __name__ == "__main__":
    main()
