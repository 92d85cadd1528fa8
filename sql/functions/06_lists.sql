-- Workflows as people look at them, newest first: every condition that is not NULL must hold, and they must come behind
-- (before_moment, before_id) in the list. What is asked decides which index serves it, so every call has a plan of its own;
-- and only a half that has its own ORDER BY and LIMIT is read in the order of its index.
create or replace function holdfast.list_workflows(
    of_name text, in_statuses smallint[], in_queue text, having_attributes jsonb, of_parent text, id_prefix text,
    on_executor text, created_from timestamptz, created_until timestamptz, finished_from timestamptz,
    finished_until timestamptz, before_moment timestamptz, before_id text, most integer)
returns table (
    id text, name text, status smallint, cancelling boolean, created_at timestamptz, started_at timestamptz,
    finished_at timestamptz, executor text, claims integer, queue text, output bytea, attributes text, parent_id text)
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    half text := '
        select w.* from holdfast.workflows w
        where ($1 is null or w.name = $1) and ($2 is null or w.status = any ($2)) and ($3 is null or w.queue = $3)
            and ($4 is null or w.attributes @> $4) and ($5 is null or w.parent_id = $5)
            and ($6 is null or starts_with(w.id, $6)) and ($7 is null or w.executor_id = any ($7))
            and ($8 is null or w.created_at >= $8) and ($9 is null or w.created_at < $9)
            and ($10 is null or w.finished_at >= $10) and ($11 is null or w.finished_at < $11)
            and ($12 is null or (w.created_at, w.id) < ($12, $13)) and w.status %s 3
        order by w.created_at desc, w.id desc limit $14';
begin
    return query execute format('
        select w.id, w.name, w.status, w.cancelling, w.created_at, w.started_at, w.finished_at, e.name, w.claims, w.queue,
            w.output, w.attributes::text, w.parent_id
        from (select h.* from ((%s) union all (%s)) h order by h.created_at desc, h.id desc limit $14) w
        left join holdfast.executors e on e.id = w.executor_id
        order by w.created_at desc, w.id desc', format(half, '='), format(half, '<>'))
    using of_name, in_statuses, in_queue, having_attributes, of_parent, id_prefix,
        case when on_executor is not null then array(select x.id from holdfast.executors x where x.name = on_executor) end,
        created_from, created_until, finished_from, finished_until, before_moment, before_id, most;
end
$$;
