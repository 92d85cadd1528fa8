"""`Settings.codec` has every stored payload in its hands, with the same context both ways; and when it fails,
that is the process's fault and no outcome of a workflow [K3].
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import holdfast as hf
from holdfast._codec.codec import SEALED
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, settled, within
from tests.runtime.witness import state, until
from tests.values import sealed
from tests.values.sealed import GO, MARK, SECRET, Seal, letters, lines, news, settings, story


async def tell(processes: Processes, waits: Waits, database: Connection, codec: Seal) -> None:
    """Plays the story to its last chapter in one process, and the end, a replay, in another."""
    await sealed.refuse(database)
    first = await processes.runtime(*sealed.WORKFLOWS, settings=settings(codec))
    await first.start(story(SECRET, more=SECRET), id="story")
    await waits.on("message", "story", "go")
    await processes.leave(first)


async def test_k3_every_stored_payload_goes_through_the_codec_and_back_with_its_context(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    await tell(processes, waits, database, Seal())
    codec = Seal()
    second = await processes.runtime(*sealed.WORKFLOWS, settings=settings(codec))
    client = await processes.client(settings=settings(codec))
    handle = client.handle(story, "story")
    await handle.send(GO, SECRET)
    told = await within(20, handle.result())
    assert told[:4] == [
        [SECRET, SECRET * 2, SECRET, "LookupError of 1", "StepFailed of 1", "LookupError of 1"],
        [SECRET, SECRET, SECRET, "none"],
        [SECRET + "!", SECRET + "!"],
        [SECRET * 2, SECRET * 2, SECRET, SECRET],
    ]
    assert told[-2:] == [["RecordRejected"], [SECRET]]
    # From outside
    assert await handle.get(news) == SECRET + "!"
    assert (await client.get_events("story", history=True))["news"] == [
        (1, SECRET),
        (2, SECRET),
        (3, SECRET + "!"),
    ]
    assert [value async for value in handle.watch(news)] == [SECRET + "!"]
    assert await handle.read(lines).collect() == [SECRET, SECRET, SECRET + "!"]
    errors = [step.error for step in await client.steps("story") if step.error]
    assert len(errors) == 7
    assert not any("cannot be read" in error for error in errors)
    for workflow in (sealed.fails, sealed.gives_what_cannot_be_stored, sealed.takes_too_long):
        with pytest.raises((hf.WorkflowFailed, hf.WorkflowCancelled)) as caught:
            await within(10, client.run(workflow(SECRET), id=workflow.name))
        assert isinstance(caught.value.__cause__, LookupError | TimeoutError | hf.PayloadNotSerializable)
        status = await client.status(workflow.name)
        assert status.error is not None
        assert "cannot be read" not in status.error
    assert all("cannot be read" not in (found.error or "") for found in await client.list())
    await settled(second)
    # In the tables
    found = await sealed.payloads(database)
    assert {column for column, _ in found} == {
        "workflows.input",
        "workflows.output",
        "steps.output",
        "messages.payload",
        "events.payload",
        "stream_values.payload",
    }
    assert [column for column, data in found if not data.startswith(SEALED + MARK)] == []
    assert SECRET not in await sealed.everything(database)


async def test_k3_the_context_names_schema_workflow_kind_and_name(
    processes: Processes, waits: Waits, database: Connection
) -> None:
    codec = Seal()
    await tell(processes, waits, database, codec)
    assert {context.schema for context in codec.sealed} == {"holdfast"}
    kinds = Counter(
        (context.kind, context.name) for context in codec.sealed if context.workflow_id == "story"
    )
    assert {kind for kind, _ in kinds} == {"input", "step", "error", "message", "event", "stream"}
    assert kinds["input", "story"] == 1
    assert kinds["step", "same"] == kinds["step", "transacts"] == kinds["step", "uuid"] == 1
    assert kinds["message", "letters"] == 2
    assert kinds["message", ""] == 1
    assert kinds["event", "news"] == 3
    assert kinds["error", "refused"] == 1


# A process with the wrong key


@hf.step
async def first_step(text: str) -> str:
    return text


@hf.workflow
async def patient(text: str) -> str:
    """Would take any error for an answer, if it were given one."""
    try:
        said = await first_step(text)
        heard = await letters.recv()
    except Exception as error:
        return f"took {type(error).__name__} for an answer"
    await news.set(heard)
    return said + heard


async def test_k3_a_process_with_the_wrong_key_parks_what_it_cannot_read(
    processes: Processes,
    waits: Waits,
    database: Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is failed, and nothing recorded; a process with the right key goes on."""
    right = settings(Seal(1))
    rt = await processes.runtime(patient, settings=right)
    await rt.start(patient(SECRET), id="w")
    await waits.on("message", "w", "letters")
    await processes.leave(rt)
    journal = await database.fetch("select * from holdfast.steps order by step_id")
    for wrong in (settings(Seal(2)), None):
        rt = await processes.runtime(patient, settings=wrong)
        await until_parked(database, rt, "w")
        assert await state(database, "w") == "PENDING"
        assert "goes on once a process with the right Settings.codec takes it" in caplog.text
        assert SECRET not in caplog.text
        caplog.clear()
        await processes.leave(rt)
    assert [tuple(row) for row in await database.fetch("select * from holdfast.steps order by step_id")] == [
        tuple(row) for row in journal
    ]
    rt = await processes.runtime(patient, settings=right)
    await rt.send("w", "!", letters)
    assert await within(10, rt.handle("w").result()) == SECRET + "!"


async def until_parked(database: Connection, rt: hf.Runtime, workflow_id: str) -> None:
    """Returns once a workflow has been given back by a process that cannot go on with it."""

    async def parked() -> bool:
        query = "select executor_id is null and $2 = any (parked) from holdfast.workflows where id = $1"
        return bool(await database.fetchval(query, workflow_id, rt.executor.lease.executor))

    await until(parked, "parked")


class Moody(Seal):
    """Fails for payloads of one kind."""

    def __init__(self, encoding: str = "", decoding: str = "") -> None:
        super().__init__()
        self.encoding, self.decoding = encoding, decoding

    def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        if context.kind == self.encoding:
            raise OSError(f"no key service to be had for {data!r}")
        return super().encode(data, context)

    def decode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        if context.kind == self.decoding:
            raise OSError(f"no key service to be had for {data!r}")
        return super().decode(data, context)


@hf.step
async def tries(text: str) -> str:
    raise LookupError(text)


@hf.workflow
async def speaks(text: str) -> str:
    me = hf.current().workflow_id
    try:
        said = await first_step(text)
        await letters.send(me, said)
        await news.set(said)
        await lines.write(await letters.recv())
    except Exception as error:
        return f"took {type(error).__name__} for an answer"
    try:
        await tries(text)
    except LookupError:
        return await news.get(me)
    return "took it for an answer"


@pytest.mark.parametrize(
    "codec",
    [Moody(encoding=kind) for kind in ("step", "message", "event", "stream", "error", "output")]
    + [Moody(decoding=kind) for kind in ("input", "step", "message", "event", "error")],
    ids=lambda codec: f"encode {codec.encoding}" if codec.encoding else f"decode {codec.decoding}",
)
async def test_k3_a_codec_that_fails_in_a_workflow_parks_it_wherever_that_is(
    processes: Processes, database: Connection, caplog: pytest.LogCaptureFixture, codec: Moody
) -> None:
    rt = await processes.runtime(speaks, settings=settings(codec))
    await rt.start(speaks(SECRET), id="w")
    await until_parked(database, rt, "w")
    assert await state(database, "w") == "PENDING"
    assert "OSError" in caplog.text
    assert SECRET not in caplog.text
    await processes.leave(rt)
    rt = await processes.runtime(speaks, settings=settings(Seal()))
    assert await within(10, rt.handle("w").result()) == SECRET


async def test_k3_a_failing_codec_in_a_step_body_is_no_failure_of_the_step(
    processes: Processes, database: Connection
) -> None:
    codec = Moody(encoding="stream")
    rt = await processes.runtime(writes_in_step, settings=settings(codec))
    await rt.start(writes_in_step(), id="w")
    await until_parked(database, rt, "w")
    assert await database.fetchval("select count(*) from holdfast.steps") == 0
    await processes.leave(rt)
    rt = await processes.runtime(writes_in_step, settings=settings(Seal()))
    assert await within(10, rt.handle("w").result()) == "written"


@hf.step(attempts=3, wait_initial=0.001)
async def writes() -> str:
    await lines.write("a")
    return "written"


@hf.transaction
async def writes_in_transaction(connection: Connection) -> str:
    await lines.write("a")
    return "written"


@hf.workflow
async def writes_in_step() -> str:
    await writes_in_transaction()
    return await writes()


async def test_k3_what_is_parked_can_be_cancelled(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(speaks, settings=settings(Moody(decoding="input", encoding="error")))
    handle = await rt.start(speaks(SECRET), id="w", timeout=30)
    await until_parked(database, rt, "w")
    assert await handle.cancel()
    with pytest.raises(hf.WorkflowCancelled):
        await within(10, handle.result())


async def test_k3_a_timeout_ends_a_workflow_even_if_its_cause_cannot_be_written(
    processes: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    rt = await processes.runtime(sealed.takes_too_long, settings=settings(Moody(encoding="error")))
    with pytest.raises(hf.WorkflowCancelled) as caught:
        await within(10, rt.run(sealed.takes_too_long(SECRET)))
    assert caught.value.__cause__ is None
    assert "cancelled without its cause" in caplog.text


# From outside


async def test_k3_outside_a_failing_codec_is_an_error_that_names_the_payload(
    processes: Processes, waits: Waits
) -> None:
    rt = await processes.runtime(speaks, patient, settings=settings(Seal()))
    assert await rt.run(speaks(SECRET), id="w") == SECRET
    await rt.start(patient(SECRET), id="p")
    other, none = await processes.client(settings=settings(Seal(3))), await processes.client()
    for client in (other, none):
        for act, named in (
            (client.handle(speaks, "w").result(), "output of workflow 'w'"),
            (client.get_event("w", news), "event 'news' of workflow 'w'"),
            (client.get_events("w"), "event 'news' of workflow 'w'"),
            (client.read_stream("w", lines).collect(), "stream 'lines' of workflow 'w'"),
        ):
            with pytest.raises(hf.PayloadCodecError, match=named) as caught:
                await act
            assert isinstance(caught.value, hf.PayloadDecodeError)
            assert SECRET not in str(caught.value)
        # Looking is possible all the same.
        assert [found.status for found in await client.list()] == ["PENDING", "SUCCESS"]
        (error,) = [step.error for step in await client.steps("w") if step.error]
        assert error.startswith("(cannot be read here: ")
    refusing = await processes.client(settings=settings(Moody(encoding="message")))
    with pytest.raises(hf.PayloadCodecError, match="message 'letters' of workflow 'p'"):
        await refusing.send("p", SECRET, letters)


async def test_k3_a_message_without_a_seal_is_the_messages_fault(processes: Processes, waits: Waits) -> None:
    """From SQL, or from before there was a codec: it is consumed, and cannot block the inbox [M6]."""
    rt, plain = await processes.runtime(patient, settings=settings(Seal())), await processes.client()
    await rt.start(patient(SECRET), id="w")
    await plain.send("w", "plain", letters)
    assert await within(10, rt.handle("w").result()) == "took PayloadDecodeError for an answer"


class Tolerant(Seal):
    """Lets plain JSON pass."""

    def decode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        return super().decode(data, context) if data.startswith(MARK) else data


async def test_k3_a_codec_may_let_plain_json_pass(processes: Processes, waits: Waits) -> None:
    plain = await processes.runtime(patient)
    await plain.start(patient(SECRET), id="w")
    await waits.on("message", "w", "letters")
    await processes.leave(plain)
    rt = await processes.runtime(patient, settings=settings(Tolerant()))
    await rt.send("w", "!", letters)
    assert await within(10, rt.handle("w").result()) == SECRET + "!"


class NoBytes(Seal):
    def __init__(self, given: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.given = given

    def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        return self.given  # type: ignore[no-any-return]

    def decode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        return self.given  # type: ignore[no-any-return]


class Async(Seal):
    async def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:  # type: ignore[override]
        return data


class Inflating(Seal):
    def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        return data * 64


@pytest.mark.parametrize(
    ("codec", "error", "text"),
    [
        (NoBytes(None), hf.PayloadCodecError, "must return bytes, not NoneType"),
        (NoBytes("text"), hf.PayloadCodecError, "must return bytes, not str"),
        (NoBytes(bytearray(b"")), hf.PayloadCodecError, "must return bytes, not bytearray"),
        (Async(), hf.PayloadCodecError, "not a coroutine; it cannot be async"),
        (Inflating(), hf.PayloadTooLarge, "over the limit"),
    ],
    ids=["nothing", "text", "bytearray", "async", "inflating"],
)
async def test_k3_a_codec_that_is_no_codec_is_told_so_before_any_io(
    processes: Processes, codec: object, error: type[Exception], text: str
) -> None:
    client = await processes.client(settings=settings(codec))
    with pytest.raises(error, match=text):
        await client.start(hf.WorkflowRef[..., None]("elsewhere")("x" * 600_000), id="w")
    with pytest.raises(hf.WorkflowNotFound):
        await client.status("w")


async def test_k3_the_limit_of_a_payload_is_that_of_its_json(processes: Processes) -> None:
    class Doubling(Seal):
        def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:
            return data * 2

        def decode(self, data: bytes, context: hf.PayloadContext) -> bytes:
            return data[: len(data) // 2]

    rt = await processes.runtime(sealed.child, settings=hf.Settings(codec=Doubling(), max_payload=1000))
    assert await rt.run(sealed.child("x" * 900)) == "x" * 900
    with pytest.raises(hf.PayloadTooLarge):
        await rt.start(sealed.child("x" * 1000))


async def test_k3_workflows_of_two_keys_side_by_side(processes: Processes, database: Connection) -> None:
    """One workflow that cannot be read keeps nobody else from running."""
    client = await processes.client(settings=settings(Seal(1)))
    for number in range(5):
        await client.start(sealed.child(SECRET), id=f"other {number}")
    rt = await processes.runtime(sealed.child, settings=settings(Seal(2)))
    found = await within(10, asyncio.gather(*(rt.run(sealed.child(str(number))) for number in range(20))))
    assert found == [str(number) for number in range(20)]
    for number in range(5):
        await until_parked(database, rt, f"other {number}")
    assert [(await client.status(f"other {number}")).status for number in range(5)] == ["PENDING"] * 5


questions = hf.Topic[str, str]("questions")


@hf.workflow
async def serves(text: str) -> str:
    async for request in questions.requests():
        await request.reply(request.value + text)
        return request.value
    return ""


@pytest.mark.parametrize("asked", [True, False])
async def test_k3_a_request_that_cannot_be_read_is_neither_rejected_nor_skipped(
    processes: Processes, database: Connection, asked: bool
) -> None:
    client = await processes.client(settings=settings(Seal()))
    handle = await client.start(serves("!"), id="w")
    asking = None
    if asked:
        asking = asyncio.create_task(client.ask("w", questions, SECRET))
    else:
        await handle.send(questions, SECRET)
    wrong = await processes.runtime(serves, settings=settings(Moody(decoding="message")))
    await until_parked(database, wrong, "w")
    await processes.leave(wrong)
    assert await database.fetchval("select count(*) from holdfast.steps where kind <> 'recv'") == 0
    await processes.runtime(serves, settings=settings(Seal()))
    assert await within(10, handle.result()) == SECRET
    if asking is not None:
        assert await within(5, asking) == SECRET + "!"
