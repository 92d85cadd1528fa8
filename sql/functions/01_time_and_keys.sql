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
