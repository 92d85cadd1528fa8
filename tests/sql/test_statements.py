"""Finding and cutting `.sql` files; no database here."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast._sql import statements
from holdfast.errors import ConfigurationError

QUERIES = """\
-- What this file is about.

-- name: claim
-- Takes the oldest,
-- and locks it.
-- name_of_nothing is an ordinary comment.
select id -- inside
from holdfast.workflows
where name = 'holdfast.' || $1;

-- name: load_two
select 1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for kind in ("migrations", "functions", "queries"):
        (tmp_path / kind).mkdir()
    (tmp_path / "queries" / "workflows.sql").write_text(QUERIES)
    return tmp_path


def test_cuts_a_file_into_named_statements(root: Path) -> None:
    loaded = statements.load("holdfast", root)
    assert set(loaded) == {"workflows.claim", "workflows.load_two"}
    assert loaded["workflows.claim"] == (
        "select id -- inside\nfrom holdfast.workflows\nwhere name = 'holdfast.' || $1"
    )
    assert loaded["workflows.load_two"] == "select 1"


def test_keeps_the_promise_beside_the_statement(root: Path) -> None:
    loaded = statements.load("holdfast", root)
    assert loaded.promise("workflows.claim") == (
        "Takes the oldest, and locks it. name_of_nothing is an ordinary comment."
    )
    assert not loaded.promise("workflows.load_two")


def test_an_unknown_statement_is_named(root: Path) -> None:
    with pytest.raises(KeyError, match=r"no statement 'workflows\.nonsense'"):
        statements.load("holdfast", root)["workflows.nonsense"]


def test_repr_holds_no_sql(root: Path) -> None:
    assert repr(statements.load("holdfast", root)) == "<Statements: 2>"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("select holdfast.f(x)", "select other.f(x)"),
        ("(holdfast.t)", "(other.t)"),
        ("'holdfast.t'::regclass", "'other.t'::regclass"),
        ('holdfast."end"', 'other."end"'),
        ("create schema if not exists holdfast;", "create schema if not exists other;"),
        ("grant usage on schema holdfast to x", "grant usage on schema other to x"),
        ("my_holdfast.t", "my_holdfast.t"),
        ("'holdfast_' || x", "'holdfast_' || x"),
        ("-- made by holdfast.", "-- made by holdfast."),
        ("raise 'holdfast: no such workflow'", "raise 'holdfast: no such workflow'"),
    ],
)
def test_writes_for_another_schema(before: str, after: str) -> None:
    assert statements.qualify(before, "other") == after
    assert statements.qualify(before, "holdfast") == before


@pytest.mark.parametrize("name", ["", "Big", 'a"b', "a.b", "1a", "ä", "a" * 64, "x; drop table y"])
def test_no_other_name_gets_into_the_text(root: Path, name: str) -> None:
    with pytest.raises(ConfigurationError):
        statements.load(name, root)
    with pytest.raises(ConfigurationError):
        statements.functions(name, root)
    with pytest.raises(ConfigurationError):
        statements.migrations(name, root)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("select 1;\n-- name: a\nselect 2", "SQL before the first"),
        ("-- name: a\nselect 1;\n-- name: a\nselect 2;", "two statements are named 'a'"),
        ("-- name: a\n-- only a promise\n", "'a' is empty"),
    ],
)
def test_a_file_that_cannot_be_cut_is_refused(root: Path, text: str, complaint: str) -> None:
    (root / "queries" / "broken.sql").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        statements.load("holdfast", root)


def test_migrations_come_in_order(root: Path) -> None:
    (root / "migrations" / "0002_more.sql").write_text("alter table holdfast.t add y int")
    (root / "migrations" / "0001_first.sql").write_text("create table holdfast.t (x int)")
    assert statements.migrations("other", root) == [
        (1, "first", "create table other.t (x int)"),
        (2, "more", "alter table other.t add y int"),
    ]


@pytest.mark.parametrize(
    "names", [["0002_b.sql"], ["0001_a.sql", "0003_c.sql"], ["0001_a.sql", "0001_b.sql"]]
)
def test_migration_numbers_have_no_holes(root: Path, names: list[str]) -> None:
    for name in names:
        (root / "migrations" / name).write_text("select 1")
    with pytest.raises(ValueError, match="without holes"):
        statements.migrations("holdfast", root)


def test_a_migration_without_a_number_is_refused(root: Path) -> None:
    (root / "migrations" / "first.sql").write_text("select 1")
    with pytest.raises(ValueError, match="0001_words"):
        statements.migrations("holdfast", root)


def test_functions_come_in_order_of_their_files(root: Path) -> None:
    (root / "functions" / "b.sql").write_text("select holdfast.b()")
    (root / "functions" / "a.sql").write_text("select holdfast.a()")
    assert statements.functions("other", root) == [
        ("a.sql", "select other.a()"),
        ("b.sql", "select other.b()"),
    ]


def test_the_files_of_this_checkout_load() -> None:
    loaded = statements.load()
    assert "schema.installed" in loaded
    assert [name for name in loaded if not loaded.promise(name)] == []
