"""Every example does what its first lines say."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import httpx
import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer
from cryptography.exceptions import InvalidTag

import holdfast as hf
from tests.processes import connect
from tests.values.sealed import everything, payloads

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

    async def test_decided_by_the_link_in_a_mail_once(self) -> None:
        module = load("approval")
        async with hf.Runtime(workflows=[module.approval], settings=module.settings) as rt:
            handle = await rt.start(module.approval(module.Expense("a chair", 200)))
            token = module.link_for(rt, handle.id).partition("#")[2]
            invalid = "this link is not valid, or no longer"
            assert await module.decide(rt, token[:-4] + "AAAA", module.Decision(True, "eve")) == invalid
            assert await module.decide(rt, token, module.Decision(False, "ada")) == "thank you"
            assert await module.decide(rt, token, module.Decision(True, "ada")) == invalid
            assert await handle.result(timeout=20) == "refused by ada"


async def test_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert await load("ask").main() == ["bob", "eve", "cem", "ada"]
    assert capsys.readouterr().out.splitlines() == [
        "ada sits on 3",
        "bob sits on 0",
        "cem sits on 2",
        "nothing left for dora",
        "eve sits on 1",
    ]


async def test_outbox(capsys: pytest.CaptureFixture[str]) -> None:
    module = load("outbox")
    for order in (17, 18):
        await asyncio.to_thread(module.main)
        neither, paid = capsys.readouterr().out.splitlines()
        assert neither == f"order {order + 1}: neither row nor workflow"
        assert paid == f"order {order}: a book for 30"


class TestEncryption:
    async def test_reads_with_the_key_and_after_a_rotation(self, capsys: pytest.CaptureFixture[str]) -> None:
        await load("encryption").main()
        told = [line.partition(":")[2].strip() for line in capsys.readouterr().out.splitlines()]
        assert told[0] == "Ada after 500 visits"
        assert (
            "this process has no Settings.codec - the event 'diagnosis' of workflow 'treatment-1'" in told[1]
        )
        assert told[2] == "Ada: all is well"

    async def test_k3_nothing_readable_is_in_the_tables(self, dsn: str) -> None:
        await load("encryption").main()
        database = await connect(dsn)
        try:
            assert "Ada" not in await everything(database)
            stored = await payloads(database)
        finally:
            await database.close()
        keys = {column: data[:2] for column, data in stored}
        assert keys["workflows.input"] == keys["events.payload"] == b"\0\1"
        assert keys["messages.payload"] == keys["workflows.output"] == b"\0\2"
        (given,) = [data for column, data in stored if column == "workflows.input"]
        assert len(given) < 200  # 500 visits, compressed

    def test_a_payload_opens_in_its_own_row_and_with_its_own_key_only(self) -> None:
        module = load("encryption")
        codec = module.Compression(module.Encryption({1: b"1" * 32, 2: b"2" * 32}, sealing=2))
        here = hf.PayloadContext(schema="holdfast", workflow_id="w", kind="message", name="a")
        for data in (b"1", b'"x"' * 5000):
            sealed = codec.encode(data, here)
            assert sealed != codec.encode(data, here)
            assert codec.decode(sealed, here) == data
            for name in ("schema", "workflow_id", "kind", "name"):
                with pytest.raises(InvalidTag):
                    codec.decode(sealed, msgspec.structs.replace(here, **{name: "other"}))
            with pytest.raises(InvalidTag):
                codec.decode(sealed[:-1] + bytes([sealed[-1] ^ 1]), here)
            for keys in ({1: b"1" * 32}, {2: b"3" * 32}):
                with pytest.raises((KeyError, InvalidTag)):
                    module.Encryption(keys, sealing=min(keys)).decode(sealed, here)


class TestSelect:
    async def _order(self, approval: str | None, cancel: str | None, **how: float) -> tuple[str, str]:
        module = load("select")
        async with hf.Runtime(workflows=[module.order, module.packing]) as rt:
            handle = await rt.start(module.order("a chair", **how))
            assert await handle.get(module.state, timeout=10) == "waiting for approval"
            if approval is not None:
                await handle.send(module.approvals, approval)
            if cancel is not None:
                await handle.send(module.cancels, cancel)
            return await handle.result(timeout=20), await handle.get(module.state)

    async def test_approved_packed_and_shipped(self) -> None:
        shipped = await self._order("ada", None, packing_time=0.05)
        assert shipped == ("shipped: a chair, in a box", "approved by ada")

    async def test_approved_by_silence(self) -> None:
        shipped = await self._order(None, None, patience=0.05, packing_time=0.05)
        assert shipped == ("shipped: a chair, in a box", "approved by the manager on duty")

    async def test_cancelled_before_it_is_approved(self) -> None:
        assert await self._order(None, "no money") == ("cancelled: no money", "waiting for approval")

    async def test_cancelled_while_it_is_packed_the_earlier_message_is_not_lost(self) -> None:
        module = load("select")
        async with hf.Runtime(workflows=[module.order, module.packing]) as rt:
            handle = await rt.start(module.order("a chair"), id="one")
            await handle.get(module.state, timeout=10)
            await handle.send(module.approvals, "ada")
            await handle.send(module.cancels, "no money")
            assert await handle.result(timeout=20) == "cancelled: no money"
            (child,) = [step for step in await rt.steps("one") if step.kind == "first"][1:]
            assert child.name == 'recv "cancel" | run "packing"'


async def test_fan_out(capsys: pytest.CaptureFixture[str]) -> None:
    await load("fan_out").main()
    *pages, words, without = capsys.readouterr().out.splitlines()
    assert sorted(pages) == sorted(f"page {page}" for page in range(12))
    assert words == "48 words"
    assert without == "44 words without page 7: torn out"


class TestLongLived:
    async def test_every_month_is_an_execution_of_its_own(self) -> None:
        module = load("long_lived")
        async with hf.Runtime(workflows=[module.subscription]) as rt:
            first = module.subscription(module.Account("ada", "basic"), month_lasts=0.05)
            handle = await rt.start(first, id="s1")
            async for account in handle.watch(module.account_event):
                if account.month == 3:
                    break
            await handle.send(module.orders, module.Order("pro"))
            async for account in handle.watch(module.account_event):
                if account.plan == "pro" and account.paid > 20:
                    break
            await handle.send(module.orders, module.Order("cancelled"))
            last = await handle.result(timeout=20)
            assert last.plan == "cancelled"
            assert last.paid > 20
            said = await handle.read(module.invoices).collect()
            assert said[:4] == [
                "ada paid 5 for month 1",
                "thank you, ada",
                "ada paid 5 for month 2",
                "thank you, ada",
            ]
            assert len(said) == 2 * last.month
            assert len(await rt.steps("s1")) <= 10, "the journal is that of the last month"

    async def test_who_was_in_the_middle_of_a_month_finishes_it_the_old_way(self, dsn: str) -> None:
        module = load("long_lived")

        @hf.workflow(name="subscription")
        async def before(account: dict[str, str], month_lasts: float) -> None:
            """The month as it was before the change."""
            await module.invoices.write(await module.charge(account["customer"], 5, 1))
            await module.account_event.set(account)
            await module.next_order(month_lasts)

        async with hf.Runtime(workflows=[before]) as rt:
            account = {"customer": "ada", "plan": "basic"}
            handle = await rt.start(before(account, month_lasts=2.0), id="s1")
            await handle.get("account", timeout=20)
        async with hf.Runtime(workflows=[module.subscription]) as rt:
            handle = rt.handle(module.subscription, "s1")
            async for found in handle.watch(module.account_event):
                if found.month == 2:
                    break
            await handle.send(module.orders, module.Order("cancelled"))
            await handle.result(timeout=20)
            assert await handle.read(module.invoices).collect() == [
                "ada paid 5 for month 1",
                "ada paid 5 for month 2",
                "thank you, ada",
            ]
