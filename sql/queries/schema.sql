-- The bookkeeping of migrations; used by src/holdfast/_sql/migrate.py and nobody else.

-- name: exists
-- True when the schema $1 is there; needs no privilege.
select to_regnamespace(quote_ident($1::text)) is not null;

-- name: create
-- The schema is there, empty or not.
create schema if not exists holdfast;

-- name: lock
-- One migrator at a time per schema $1, until its transaction ends.
select pg_advisory_xact_lock(hashtextextended('holdfast migrate ' || $1::text, 0));

-- name: has_versions
-- True when the table of versions is there; unlike asking it, this cannot fail a transaction.
select to_regclass('holdfast.schema_version') is not null;

-- name: create_versions
-- The table of versions is there.
create table if not exists holdfast.schema_version (
    number integer primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null
);

-- name: installed
-- One row per applied migration, and number 0 for the functions; fails with 42P01 where nothing is installed.
select number, checksum from holdfast.schema_version order by number;

-- name: record
-- Number $1, name $2 with checksum $3 is installed from now on.
insert into holdfast.schema_version (number, name, checksum, applied_at)
values ($1::integer, $2::text, $3::text, clock_timestamp())
on conflict (number) do update
    set name = excluded.name, checksum = excluded.checksum, applied_at = excluded.applied_at;
