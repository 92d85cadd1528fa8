"""Looking at workflows and talking to them from a shell: data on stdout, talk on stderr, exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import holdfast as hf
from tests.cli.conftest import Shell, ask, fail, greet


@pytest.mark.parametrize(
    ("input", "result"),
    [
        ('["ada"]', "hello ada"),
        ('{"name": "ada", "times": 2}', "hello ada hello ada"),
        ('"ada"', "hello ada"),
    ],
)
async def test_start_takes_arguments_as_array_object_or_alone(
    shell: Shell, rt: hf.Runtime, input: str, result: str
) -> None:
    done = await shell("start", "greet", input, "--wait", "--timeout", "30")
    assert (done.code, done.out) == (0, f"{result}\n")


async def test_start_takes_arguments_of_any_name(shell: Shell, dsn: str) -> None:
    done = await shell("start", "elsewhere", '{"self": 1, "name": 2, "args": 3}', "--id", "one")
    assert (done.code, done.out, done.err) == (0, "one\n", "")


async def test_start_prints_the_id_and_attaches(shell: Shell, rt: hf.Runtime) -> None:
    for _ in range(2):
        done = await shell("start", "greet", '["ada"]', "--id", "g1")
        assert (done.code, done.out, done.err) == (0, "g1\n", "")
    assert await rt.handle("g1").result(timeout=30) == "hello ada"
    conflict = await shell("start", "ask", '["?"]', "--id", "g1")
    assert conflict.code == 2
    assert "'greet'" in conflict.err


async def test_a_conversation(shell: Shell, rt: hf.Runtime) -> None:
    await rt.start(ask("why?"), id="a1")
    tail = await shell.begin("tail", "a1", "lines", "--json")
    watch = await shell.begin("watch", "a1", "stage")
    assert (await shell("event", "a1", "stage", "--timeout", "30")).out == "asking\n"
    sent = await shell("send", "a1", "answer", '"because"', "--key", "k1")
    assert (sent.code, sent.out, sent.err) == (0, "", "sent\n")
    followed = await shell.end(tail)
    assert [(item["offset"], item["value"]) for item in followed.documents] == [
        (0, "why?"),
        (1, "is asked"),
        (2, "because"),
    ]
    watched = (await shell.end(watch)).out.splitlines()
    assert watched in (["asking", "answered"], ["answered"])  # one who comes late skips to the latest [E5]
    assert (await shell("tail", "a1", "lines", "--after", "1")).out == "because\n"
    late = await shell("send", "a1", "answer", '"too late"')
    assert late.code == 1
    assert "has ended" in late.err


async def test_input_from_stdin(shell: Shell, rt: hf.Runtime) -> None:
    done = await shell("start", "greet", "-", "--wait", "--json", input='{"name": "grace"}')
    assert done.documents == ["hello grace"]


class Reversed:
    """A codec of which a command knows nothing."""

    def encode(self, data: bytes, context: hf.PayloadContext) -> bytes:
        return data[::-1]

    decode = encode


async def test_k3_what_a_codec_has_sealed_is_shown_as_far_as_it_can_be(shell: Shell, dsn: str) -> None:
    settings = hf.Settings(codec=Reversed())
    async with hf.Runtime(dsn, workflows=[ask, fail], settings=settings) as rt:
        handle = await rt.start(ask("why?"), id="a1")
        await handle.send("answer", "so")
        await handle.result(timeout=30)
        with pytest.raises(hf.WorkflowFailed):
            await rt.run(fail("why?"), id="f1")
    shown = await shell("show", "a1")
    assert shown.code == 0
    assert "SUCCESS" in shown.out
    assert "recv" in shown.out
    assert "its events cannot be read here: stored through a payload codec" in shown.err
    (document,) = (await shell("show", "f1", "--json")).documents
    assert document["error"].startswith("(cannot be read here: stored through a payload codec")
    assert len((await shell("list", "--json")).documents) == 2
    event = await shell("event", "a1", "stage")
    assert (event.code, event.out) == (2, "")
    assert "event 'stage' of workflow 'a1'" in event.err


async def test_show_and_list(shell: Shell, rt: hf.Runtime) -> None:
    handle = await rt.start(ask("why?"), id="a1")
    await handle.send("answer", "so")
    await handle.result(timeout=30)
    await rt.run(greet("ada"), id="g1")
    shown = await shell("show", "a1")
    assert shown.code == 0
    for piece in ("SUCCESS", 'stage = "answered"', "write_stream", "recv"):
        assert piece in shown.out
    (document,) = (await shell("show", "a1", "--json")).documents
    assert (document["status"], document["events"]) == ("SUCCESS", {"stage": "answered"})
    assert [step["kind"] for step in document["steps"]][:2] == ["write_stream", "set_event"]
    assert [row["id"] for row in (await shell("list", "--json")).documents] == ["g1", "a1"]
    table = (await shell("list", "--name", "ask", "--status", "success")).out.splitlines()
    assert [line.split()[:3] for line in table] == [["ID", "NAME", "STATUS"], ["a1", "ask", "SUCCESS"]]


async def test_cancel(shell: Shell, rt: hf.Runtime) -> None:
    handle = await rt.start(ask("why?"), id="a1")
    assert (await shell("cancel", "a1")).err == "cancelling\n"
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(timeout=30)
    assert (await shell("cancel", "a1", "--json")).documents == [{"id": "a1", "was_active": False}]


async def test_a_failure_exits_with_1(shell: Shell, rt: hf.Runtime) -> None:
    done = await shell("start", "fail", '["no luck"]', "--wait")
    assert (done.code, done.out) == (1, "")
    assert "ValueError: no luck" in done.err
    await rt.start(fail("no luck"), id="f1")
    assert (await shell("event", "f1", "stage", "--timeout", "30")).code == 1


async def test_resume(shell: Shell, rt: hf.Runtime) -> None:
    handle = await rt.start(ask("why?"), id="a1")
    assert (await shell("resume", "a1")).err == "it was active anyway\n"
    await shell("cancel", "a1")
    with pytest.raises(hf.WorkflowCancelled):
        await handle.result(timeout=30)
    assert (await shell("resume", "a1", "--json")).documents == [{"id": "a1", "resumed": True}]
    await handle.send("answer", "because")
    await handle.result(timeout=30)
    ended = await shell("resume", "a1")
    assert (ended.code, ended.out) == (2, "")
    assert "fork" in ended.err


async def test_fork(shell: Shell, rt: hf.Runtime) -> None:
    handle = await rt.start(ask("why?"), id="a1")
    await handle.send("answer", "because")
    said = await handle.result(timeout=30)
    (recv,) = (step.step_id for step in await rt.steps("a1") if step.kind == "recv")
    done = await shell("fork", "a1", "--from-step", recv, "--id", "a2")
    assert (done.code, done.out, done.err) == (0, "a2\n", "")
    await rt.send("a2", "because", "answer")
    assert await rt.handle("a2").result(timeout=30) == said
    (made,) = (await shell("fork", "a1", "--from-step", "1", "--json")).documents
    assert (await rt.status(made["id"])).name == "ask"
    for words in (("a1", "--from-step", "99"), ("a1",), ("a1", "--from-step", "1", "--id", "a1")):
        assert (await shell("fork", *words)).code == 2


async def test_show_tells_of_streams_and_messages(shell: Shell, rt: hf.Runtime) -> None:
    handle = await rt.start(ask("why?"), id="a1", attributes={"customer": 17})
    await handle.send("answer", "so")
    await handle.send("spare", "unread")
    await handle.result(timeout=30)
    shown = (await shell("show", "a1")).out
    for piece in ("lines  3 values", "TAKEN BY", "spare", '{"customer":17}'):
        assert piece in shown
    (document,) = (await shell("show", "a1", "--json")).documents
    assert [message["topic"] for message in document["messages"]] == ["answer", "spare"]
    assert document["streams"] == [{"name": "lines", "length": 3, "closed": False}]
    assert document["attributes"] == {"customer": 17}


async def test_list_by_filters_and_pages(shell: Shell, rt: hf.Runtime) -> None:
    for number in range(4):
        await rt.run(greet("ada"), id=f"g{number}", attributes={"even": number % 2 == 0})
    with pytest.raises(hf.WorkflowFailed):
        await rt.run(fail("no luck"), id="f1")

    async def listed(*words: str) -> list[str]:
        return [row["id"] for row in (await shell("list", "--json", *words)).documents]

    assert await listed("--attributes", '{"even": true}') == ["g2", "g0"]
    assert await listed("--status", "error", "--status", "pending") == ["f1"]
    assert await listed("--id-prefix", "g", "--limit", "2") == ["g3", "g2"]
    moment = (await rt.status("g2")).created_at.isoformat()
    assert await listed("--created-before", moment) == ["g1", "g0"]
    assert await listed("--finished-after", "2099-01-01") == []
    page = await shell("list", "--json", "--limit", "3")
    cursor = page.err.split()[-1]
    assert await listed("--cursor", cursor) == ["g1", "g0"]


@pytest.mark.parametrize(
    "words",
    [
        ("resume", "nobody"),
        ("fork", "nobody", "--from-step", "1"),
        ("show", "nobody"),
        ("send", "nobody", "topic", "1"),
        ("tail", "nobody", "stream"),
        ("watch", "nobody", "key"),
        ("cancel", "nobody"),
    ],
    ids=lambda words: words[0],
)
async def test_an_unknown_id_exits_with_3(shell: Shell, words: tuple[str, ...]) -> None:
    done = await shell(*words)
    assert (done.code, done.out) == (3, "")
    assert "'nobody'" in done.err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("dance",),
        ("send", "a1", "topic", "{no json"),
        ("list", "--status", "happy"),
        ("list", "--attributes", "[]"),
        ("list", "--attributes", "{"),
        ("list", "--cursor", "x"),
        ("list", "--created-after", "yesterday"),
        ("list", "--schema", "No Such"),
        ("list", "--dsn", "mysql://somewhere"),
        ("show", ""),
        ("list", "--created-after", "0001-01-01"),
        ("list", "--limit", "0"),
        ("list", "--limit", "3000000000"),
        ("list", "--name", "\udcff"),
        ("start", "greet", '"\udcff"'),
        ("send", "a1", "answer", '"\udcff"'),
        ("tail", "a1", "lines", "--after", "-2"),
        ("tail", "a1", "lines", "--after", str(2**63)),
        ("event", "a1", "stage", "--timeout", "-1"),
        ("event", "a1", "stage", "--timeout", "1e12"),
        ("event", "a1", "stage", "--timeout", "nan"),
    ],
    ids=lambda words: ascii(" ".join(words)),
)
async def test_misuse_exits_with_2(shell: Shell, words: tuple[str, ...]) -> None:
    done = await shell(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err
    assert "Traceback" not in done.err


async def test_a_timeout_exits_with_4(shell: Shell, rt: hf.Runtime) -> None:
    await rt.start(ask("why?"), id="a1")
    assert (await shell("event", "a1", "never", "--timeout", "0.05")).code == 4
    assert (await shell("start", "ask", '["why?"]', "--id", "a1", "--wait", "--timeout", "0.05")).code == 4


async def test_migrate(empty_dsn: str, tmp_path: Path) -> None:
    shell = Shell(empty_dsn, tmp_path)
    for words in (("migrate", "--check"), ("list",)):
        missing = await shell(*words)
        assert missing.code == 2
        assert "holdfast migrate" in missing.err
    for words in (("migrate",), ("migrate", "--check"), ("list",)):
        assert (await shell(*words)).code == 0
    assert (await shell("migrate", "--check", "--schema", "other")).code == 2
    assert (await shell("migrate", "--schema", "other", "--json")).documents == [
        {"schema": "other", "up_to_date": True}
    ]


async def test_migrate_sql_is_a_script(tmp_path: Path) -> None:
    done = await Shell(None, tmp_path)("migrate", "--sql", "--schema", "elsewhere")
    assert done.code == 0
    assert done.out.rstrip().endswith("commit;")
    assert "elsewhere.workflows" in done.out


async def test_without_a_database_nothing_is_made(tmp_path: Path) -> None:
    done = await Shell(None, tmp_path)("list")
    assert done.code == 2
    assert "HOLDFAST_DATABASE_URL" in done.err
    assert os.listdir(tmp_path) == []


async def test_a_reader_who_has_seen_enough(shell: Shell, rt: hf.Runtime) -> None:
    await rt.start(ask("why?"), id="a1")
    await rt.get_event("a1", "stage", timeout=30)
    tail = await shell.begin("tail", "a1", "lines")
    assert tail.stdout is not None
    assert await tail.stdout.readline() == b"why?\n"
    tail.terminate()
    done = await shell.end(tail)
    assert (done.code, done.err) == (130, "holdfast: interrupted\n")


async def test_json_is_json_to_the_last_letter(shell: Shell, rt: hf.Runtime) -> None:
    await rt.start(ask("«why?»\n"), id="a1")
    await rt.get_event("a1", "stage", timeout=30)
    tail = await shell.begin("tail", "a1", "lines", "--json")
    assert tail.stdout is not None
    assert json.loads(await tail.stdout.readline())["value"] == "«why?»\n"
    await rt.cancel("a1")
    assert (await shell.end(tail)).code == 0
