"""An empty database and a scratch folder of SQL files for the tests of `_sql`."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest


@pytest.fixture
async def dsn() -> AsyncIterator[str]:
    server = os.environ["HOLDFAST_TEST_DATABASE_URL"]
    name = f"t{uuid.uuid4().hex}"
    admin = await asyncpg.connect(server)
    await admin.execute(f"create database {name}")
    yield server.replace("/postgres?", f"/{name}?")
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()
