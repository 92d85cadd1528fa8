"""Lists: filters, pages, attributes."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

import holdfast as hf
from holdfast._store.connection import Connection
from tests.processes import Processes, Waits, settled
from tests.runtime.witness import PATIENCE


@hf.workflow
async def quiet(label: str = "") -> str:
    return label


@hf.workflow
async def fails() -> None:
    raise ValueError("as always")


@hf.workflow
async def waits_for() -> str:
    return await hf.recv("go on", type=str)


@hf.workflow
async def family() -> None:
    await hf.start(quiet(), id="given", attributes={"role": "child"})
    await quiet()


def ids(page: hf.Page[hf.WorkflowStatus]) -> list[str]:
    return [found.id for found in page]


async def test_filters_hold_together(processes: Processes, waits: Waits) -> None:
    rt = await processes.runtime(quiet, fails, waits_for, family)
    await rt.run(quiet(), id="q1", attributes={"customer": 1, "tags": ["a", "b"]})
    await rt.run(quiet(), id="q2", attributes={"customer": 2, "tags": ["b"]})
    with pytest.raises(hf.WorkflowFailed):
        await rt.run(fails(), id="f1", attributes={"customer": 1})
    await rt.start(waits_for(), id="w1")
    await waits.on("message", "w1", "go on")
    await rt.run(family(), id="fam")
    await rt.handle("given").result(PATIENCE)
    client = await processes.client()
    assert ids(await client.list()) == ["fam/2", "given", "fam", "w1", "f1", "q2", "q1"]
    assert ids(await client.list(name="quiet")) == ["fam/2", "given", "q2", "q1"]
    assert ids(await client.list(status="ERROR")) == ["f1"]
    assert ids(await client.list(status=hf.Status.PENDING)) == ["w1"]
    assert ids(await client.list(status=["ERROR", hf.Status.PENDING])) == ["w1", "f1"]
    assert ids(await client.list(status=["ERROR", "SUCCESS"], name="quiet", limit=1)) == ["fam/2"]
    assert ids(await client.list(attributes={"customer": 1})) == ["f1", "q1"]
    assert ids(await client.list(attributes={"tags": ["b"]})) == ["q2", "q1"]
    assert ids(await client.list(attributes={"tags": ["b"]}, status="SUCCESS", name="fails")) == []
    assert ids(await client.list(attributes={})) == ["given", "f1", "q2", "q1"]
    assert ids(await client.list(parent="fam")) == ["fam/2", "given"]
    assert ids(await client.list(id_prefix="q")) == ["q2", "q1"]
    assert ids(await client.list(id_prefix="fam/")) == ["fam/2"]
    assert ids(await client.list(queue="nowhere")) == []
    executor = (await client.status("w1")).executor
    assert executor is not None
    assert len(await client.list(executor=executor)) == 7
    assert ids(await client.list(executor="another")) == []


async def test_times_are_bounds(processes: Processes) -> None:
    rt = await processes.runtime(quiet, waits_for)
    for number in range(4):
        await rt.run(quiet(), id=f"q{number}")
    await rt.start(waits_for(), id="w")
    by_id = {found.id: found for found in await rt.list()}
    created, finished = by_id["q2"].created_at, by_id["q2"].finished_at
    assert ids(await rt.list(created_after=created)) == ["w", "q3", "q2"]
    assert ids(await rt.list(created_before=created)) == ["q1", "q0"]
    assert ids(await rt.list(finished_after=finished)) == ["q3", "q2"]
    assert ids(await rt.list(finished_before=finished)) == ["q1", "q0"]
    shifted = created.astimezone() + timedelta(microseconds=1)
    assert ids(await rt.list(created_after=created, created_before=shifted)) == ["q2"]
    with pytest.raises(ValueError, match="time zone"):
        await rt.list(created_after=datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 24, 25, 26])
async def test_pages_make_the_list(processes: Processes, limit: int) -> None:
    rt = await processes.runtime(quiet)
    await asyncio.gather(*(rt.start(quiet(), id=f"q{number:02}") for number in range(25)))
    whole = ids(await rt.list())
    assert len(whole) == 25
    assert (await rt.list()).cursor is None
    found, cursor, pages = list[str](), None, 0
    while True:
        page = await rt.list(limit=limit, cursor=cursor)
        found += ids(page)
        pages += 1
        cursor = page.cursor
        if cursor is None:
            break
        assert len(page) == limit
    assert found == whole
    assert pages == -(-25 // limit)


async def test_pages_stay_where_they_were_when_others_start_and_end(processes: Processes) -> None:
    client = await processes.client()
    remote = hf.WorkflowRef[[str], str]("quiet")
    for number in range(10):
        await client.start(remote("x"), id=f"q{number}")
    first = await client.list(limit=4)
    assert ids(first) == ["q9", "q8", "q7", "q6"]
    rt = await processes.runtime(quiet)
    for number in range(10):
        await rt.handle(f"q{number}").result(PATIENCE)
    await rt.run(quiet(), id="new")
    second = await client.list(limit=4, cursor=first.cursor)
    assert ids(second) == ["q5", "q4", "q3", "q2"]
    assert ids(await rt.list(limit=4, cursor=second.cursor)) == ["q1", "q0"]


async def test_pages_of_workflows_of_one_moment(processes: Processes, database: Connection) -> None:
    rt = await processes.runtime(quiet)
    odd = ["a:b", "ä€😀", "A", "a", "-", "z" * 512, "null"]
    for name in odd:
        await rt.run(quiet(), id=name)
    await settled(rt)
    await database.execute("update holdfast.workflows set created_at = '2026-01-01Z'")
    found, cursor = list[str](), None
    for _ in odd:
        page = await rt.list(limit=1, cursor=cursor)
        found, cursor = found + ids(page), page.cursor
    assert cursor is None
    assert found == sorted(odd, key=str.encode, reverse=True)


BAD = ["", "x", "!!!!", "MTIz", "OmE=", "YTpi", "ä", "MTI6YQ", "OTk5OTk5OTk5OTk5OTk5OTk5OTk6YQ==", "MToA"]


@pytest.mark.parametrize("cursor", BAD)
async def test_a_cursor_that_is_none_is_refused(processes: Processes, cursor: str) -> None:
    client = await processes.client()
    with pytest.raises(ValueError, match="cursor"):
        await client.list(cursor=cursor)


@pytest.mark.parametrize(
    "question",
    [
        {"limit": 0},
        {"limit": -1},
        {"limit": 2**31},
        {"status": "HAPPY"},
        {"status": ["X"]},
        {"name": "\udcff"},
        {"id_prefix": "a\0"},
    ],
    ids=ascii,
)
async def test_nonsense_is_refused(processes: Processes, question: dict[str, Any]) -> None:
    client = await processes.client()
    with pytest.raises(ValueError, match=r"limit|(HAPPY|X).* QUARANTINED|surrogate|NUL"):
        await client.list(**question)


# Attributes


ATTRIBUTES: dict[str, Any] = {
    "text": 'ä€😀 \\u0000 "quoted"',
    "number": 17,
    "large": 2**60,
    "float": 1.5,
    "yes": True,
    "nothing": None,
    "list": [1, "a", {"deep": []}],
    "": "an empty key",
}


async def test_attributes_come_back_as_they_were(processes: Processes) -> None:
    rt = await processes.runtime(quiet)
    client = await processes.client()
    await rt.run(quiet(), id="one", attributes=ATTRIBUTES)
    await rt.run(quiet(), id="none")
    await rt.run(quiet(), id="empty", attributes={})
    assert (await client.status("one")).attributes == ATTRIBUTES
    assert (await client.status("none")).attributes is None
    assert (await client.status("empty")).attributes == {}
    for key, value in ATTRIBUTES.items():
        assert ids(await client.list(attributes={key: value})) == ["one"]
    assert "deep" not in repr(await client.status("one"))


async def test_w1_attributes_are_those_of_the_first_start(processes: Processes) -> None:
    client = await processes.client()
    remote = hf.WorkflowRef[[], str]("quiet")
    for number in range(2):
        await client.start(remote(), id="one", attributes={"n": number})
    assert (await client.status("one")).attributes == {"n": 0}


@pytest.mark.parametrize(
    ("attributes", "error"),
    [
        ([1], hf.PayloadNotSerializable),
        ("text", hf.PayloadNotSerializable),
        ({1: 2}, hf.PayloadNotSerializable),
        ({"x": object()}, hf.PayloadNotSerializable),
        ({"x": float("nan")}, hf.PayloadNotSerializable),
        ({"x": "\ud800"}, hf.PayloadNotSerializable),
        ({"x": "nul \0"}, hf.PayloadNotSerializable),
        ({"x": {"nul \0": 1}}, hf.PayloadNotSerializable),
        ({"x": ["nul \0"]}, hf.PayloadNotSerializable),
        ({"x": "y" * 20_000}, hf.PayloadTooLarge),
    ],
)
async def test_k2_attributes_that_cannot_be_are_refused_before_anything_is_written(
    processes: Processes, attributes: dict[str, Any], error: type[Exception]
) -> None:
    rt = await processes.runtime(quiet)
    with pytest.raises(error):
        await rt.start(quiet(), id="one", attributes=attributes)
    with pytest.raises(error):
        await rt.list(attributes=attributes)
    assert await rt.list() == ()


async def test_w8_a_child_of_an_id_that_is_taken(processes: Processes, database: Connection) -> None:
    seen = list[str]()

    @hf.workflow
    async def parent(on_existing: str) -> str:
        try:
            handle = await hf.start(quiet("mine"), id="taken", on_existing=on_existing)  # type: ignore[arg-type]
            said = await handle.result()
        except hf.WorkflowConflict as error:
            said = f"conflict {error.workflow_id}"
        seen.append(said)
        await hf.recv("go on")
        return said

    rt = await processes.runtime(parent, quiet)
    await rt.run(quiet("first"), id="taken")
    for on_existing in ("attach", "raise"):
        await rt.start(parent(on_existing), id=on_existing)
    while len(seen) < 2:
        await asyncio.sleep(0)
    await processes.leave(rt)
    rt = await processes.runtime(parent, quiet)
    for on_existing, said in (("attach", "first"), ("raise", "conflict taken")):
        await rt.send(on_existing, None, "go on")
        assert await rt.handle(on_existing).result(PATIENCE) == said
    assert sorted(seen) == ["conflict taken"] * 2 + ["first"] * 2
    with pytest.raises(ValueError, match="on_existing"):
        hf.start(quiet(), on_existing="ignore")  # type: ignore[arg-type]
