"""Every example does what its first lines say."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from aiohttp.test_utils import TestClient, TestServer

import holdfast as hf

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def database(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples take their database from the environment, as programs do."""
    monkeypatch.setenv("HOLDFAST_DATABASE_URL", dsn)


def load(name: str) -> ModuleType:
    """The only module of an example, fresh for each test."""
    (path,) = (EXAMPLES / name).glob("*.py")
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_in_the_table_and_says_what_it_is() -> None:
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"}
    table = (EXAMPLES / "README.md").read_text("utf-8")
    assert {name for name in folders if f"[`{name}`]" not in table} == set()
    assert {name for name in folders if not load(name).__doc__} == set()


class TestCheckoutFastAPI:
    @pytest.fixture
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        module = load("checkout_fastapi")
        async with (
            module.rt,  # what the lifespan does; httpx does not run it
            httpx.AsyncClient(transport=httpx.ASGITransport(module.app), base_url="http://shop") as client,
        ):
            yield client

    async def _begin(self, client: httpx.AsyncClient) -> None:
        started = await client.post("/checkout/17", json={"item": "a book", "price": 30})
        assert started.json() == "https://bank.example/pay/30"

    async def _pay(self, client: httpx.AsyncClient, event: str = "e1") -> int:
        answer = await client.post("/webhook/17", json={"event_id": event, "amount": 30})
        return answer.status_code

    async def test_starts_once_and_is_paid_once(self, client: httpx.AsyncClient) -> None:
        await self._begin(client)
        await self._begin(client)
        assert await self._pay(client) == 204
        stream = await client.get("/checkout/17/progress")
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert [line for line in stream.text.splitlines() if line] == [
            "id: 0",
            'data: "waiting for the payment"',
            "id: 1",
            'data: "30 received"',
            "id: 2",
            'data: "a book, in a box"',
            "event: end",
            "data: {}",
        ]
        assert (await client.get("/checkout/17")).json() == {"status": "SUCCESS", "error": None}
        assert await self._pay(client, "e2") == 409

    async def test_a_reader_resumes_behind_its_last_event(self, client: httpx.AsyncClient) -> None:
        await self._begin(client)
        assert await self._pay(client) == 204
        await client.get("/checkout/17/progress")
        rest = await client.get("/checkout/17/progress", headers={"Last-Event-ID": "1"})
        assert [line for line in rest.text.splitlines() if line.startswith("id:")] == ["id: 2"]

    async def test_what_is_not_there_is_not_found(self, client: httpx.AsyncClient) -> None:
        for answer in (
            await client.get("/checkout/none"),
            await client.get("/checkout/none/progress"),
            await client.post("/webhook/none", json={"event_id": "e", "amount": 1}),
        ):
            assert answer.status_code == 404

    async def test_its_lifespan_runs_the_workflows(self) -> None:
        module = load("checkout_fastapi")
        async with module.app.router.lifespan_context(module.app):
            handle = await module.rt.start(module.checkout(module.Order(item="a pen", price=2)))
            assert await handle.get(module.pay_url, timeout=10) == "https://bank.example/pay/2"


async def test_checkout_aiohttp() -> None:
    module = load("checkout_aiohttp")
    async with TestClient(TestServer(module.make_app())) as client:
        started = await client.post("/checkout/17", json={"item": "a book", "price": 30})
        assert await started.json() == {"pay_url": "https://bank.example/pay/30"}
        async with client.ws_connect("/checkout/17/progress") as socket:
            assert await socket.receive_json() == {"offset": 0, "value": "waiting for the payment"}
            for _ in range(2):
                paid = await client.post("/webhook/17", json={"event_id": "e1", "amount": 30})
                assert paid.status in (204, 409)  # the second finds it gone, or its key taken
            assert await socket.receive_json() == {"offset": 1, "value": "30 received"}
        async with client.ws_connect("/checkout/17/progress?after=0") as socket:
            assert [message.json() async for message in socket] == [{"offset": 1, "value": "30 received"}]
        missing = await client.post("/webhook/none", json={"event_id": "e1", "amount": 30})
        assert missing.status == 404


async def test_agent_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    module = load("agent_tokens")
    assert await module.main() == module.ANSWERS["answer"]
    assert capsys.readouterr().out.split() == (f"{module.ANSWERS['plan']} {module.ANSWERS['answer']}").split()


async def test_agent_tokens_are_seen_before_the_step_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("agent_tokens")
    seen = asyncio.Event()

    async def model(prompt: str) -> AsyncIterator[str]:
        yield "first"
        await seen.wait()  # only a reader who has seen the first token lets the second one come
        yield "second"

    monkeypatch.setattr(module, "model", model)
    async with asyncio.timeout(20), hf.Runtime(workflows=[module.agent]) as rt:
        handle = await rt.start(module.agent("?"))
        async for token in handle.read(module.tokens):
            assert token == "first"
            seen.set()
            break
        assert await handle.result() == "first second"


class TestApproval:
    async def _decide(self, decision: dict[str, object] | None, **how: float) -> str:
        module = load("approval")
        async with hf.Runtime(workflows=[module.approval]) as rt:
            handle = await rt.start(module.approval(module.Expense("a chair", 200), **how))
            asked = await handle.get(module.question, timeout=10)
            assert asked.text == "200 for a chair?"
            if decision is not None:
                await handle.send(module.decisions, module.Decision(**decision))
            result: str = await handle.result(timeout=20)
            if decision is None:
                assert (await handle.get(module.question)).reminders == how["reminders"]
            return result

    async def test_approved(self) -> None:
        assert await self._decide({"approved": True, "by": "ada"}) == "paid 200 for a chair"

    async def test_refused(self) -> None:
        assert await self._decide({"approved": False, "by": "ada"}) == "refused by ada"

    async def test_nobody_answers(self) -> None:
        assert await self._decide(None, patience=0.05, reminders=1) == "nobody decided"


async def test_fan_out(capsys: pytest.CaptureFixture[str]) -> None:
    await load("fan_out").main()
    *pages, words, without = capsys.readouterr().out.splitlines()
    assert sorted(pages) == sorted(f"page {page}" for page in range(12))
    assert words == "48 words"
    assert without == "44 words without page 7: torn out"
