-- The only clock that two processes compare. Tests move it by replacing it; it has no SET clause so that it is inlined.
create or replace function holdfast.now() returns timestamptz language sql volatile as
$$ select pg_catalog.clock_timestamp() $$;

-- The key of a bell: the same bytes as _keys.wake_key in Python, so that SQL and Python ring the same bell.
create or replace function holdfast.wake_key(kind text, workflow_id text, name text) returns text
language sql immutable set search_path = pg_catalog, pg_temp as
$$
    select substr(encode(sha256(
        int4send(octet_length(convert_to(kind, 'UTF8'))) || convert_to(kind, 'UTF8')
        || int4send(octet_length(convert_to(workflow_id, 'UTF8'))) || convert_to(workflow_id, 'UTF8')
        || int4send(octet_length(convert_to(name, 'UTF8'))) || convert_to(name, 'UTF8')), 'hex'), 1, 16)
$$;

-- Rings the bells of these keys from SQL: no mark, so every process wakes, the caller's included.
create or replace function holdfast.ring(channel text, keys text[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp as
$$
    select pg_notify(channel, ':' || string_agg(key, ''))
    from unnest(keys) with ordinality as bell(key, place)
    group by (place - 1) / 480
$$;

-- The channel that this schema's bells ring on: the same name as _keys.channel in Python. Its first word is the product's
-- and not the schema's, so it is in two pieces, which the loader leaves alone.
create or replace function holdfast.channel() returns text
language sql immutable set search_path = pg_catalog, pg_temp as
$$
    select 'hold' || 'fast_'
        || substr(encode(sha256(convert_to(split_part('holdfast.channel', '.', 1), 'UTF8')), 'hex'), 1, 16)
$$;

-- A fresh id: a UUID of version 7, made as _keys.new_workflow_id makes them.
create or replace function holdfast.new_workflow_id() returns text
language sql volatile set search_path = pg_catalog, pg_temp as
$$
    select substr(milliseconds, 1, 8) || '-' || substr(milliseconds, 9) || '-7' || fraction
        || '-' || substr(gen_random_uuid()::text, 20)
    from (select floor(extract(epoch from clock_timestamp()) * 1000000)::bigint as microseconds offset 0) t
    cross join lateral (
        select lpad(to_hex(microseconds / 1000), 12, '0') as milliseconds,
            lpad(to_hex(microseconds % 1000 * 4096 / 1000), 3, '0') as fraction) digits
$$;
