"""What the driver knows of types when a connection is opened."""

from __future__ import annotations

from uuid import UUID

import asyncpg
import pytest

from holdfast._sql import statements
from holdfast._store.connection import connect


async def test_no_connection_is_asked_about_types(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's question is by far the dearest statement of a new connection."""
    connection = await connect(dsn, role="test")

    async def asked(*_: object) -> None:
        raise AssertionError("a connection was asked about types")

    monkeypatch.setattr(asyncpg.Connection, "_introspect_types", asked)
    try:
        for statement in statements.load("holdfast").values():
            await connection.prepare(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bool", [True, None, False]),
        ("bytea", [b"", b"\0a", None]),
        ("int2", [-(1 << 15), None, (1 << 15) - 1]),
        ("int4", [-(1 << 31), None, (1 << 31) - 1]),
        ("int8", [-(1 << 63), None, (1 << 63) - 1]),
        ("float8", [0.1, None, float("inf")]),
        ("uuid", [UUID(int=0), None, UUID(int=(1 << 128) - 1)]),
    ],
)
async def test_arrays_are_what_the_server_takes_them_for(dsn: str, name: str, values: list[object]) -> None:
    connection = await connect(dsn, role="test")
    try:
        assert await connection.fetchval(f"select $1::{name}[]", values) == values
        texts = await connection.fetch(f"select v::text from unnest($1::{name}[]) v", values)
        known = [await connection.fetchval(f"select $1::{name}::text", one) for one in values]
        assert [row["v"] for row in texts] == known
    finally:
        await connection.close()
