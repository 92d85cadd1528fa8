-- Workflows as people look at them, newest first: every condition that is not NULL must hold, and they must come behind
-- (before_moment, before_id) in the list. A plan of its own for every call: what is asked decides which index serves it.
create or replace function holdfast.list_workflows(
    of_name text, in_statuses smallint[], in_queue text, having_attributes jsonb, of_parent text, id_prefix text,
    on_executor text, created_from timestamptz, created_until timestamptz, finished_from timestamptz,
    finished_until timestamptz, before_moment timestamptz, before_id text, most integer)
returns table (
    id text, name text, status smallint, cancelling boolean, created_at timestamptz, started_at timestamptz,
    finished_at timestamptz, executor text, claims integer, queue text, output bytea, attributes text, parent_id text)
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as
$$
begin
    return query
    select w.id, w.name, w.status, w.cancelling, w.created_at, w.started_at, w.finished_at, e.name, w.claims, w.queue,
        w.output, w.attributes::text, w.parent_id
    from (
        select l.* from (
            select s.* from holdfast.workflows s where s.status = 3
            union all
            select o.* from holdfast.workflows o where o.status <> 3) l
        where (of_name is null or l.name = of_name)
            and (in_statuses is null or l.status = any (in_statuses))
            and (in_queue is null or l.queue = in_queue)
            and (having_attributes is null or l.attributes @> having_attributes)
            and (of_parent is null or l.parent_id = of_parent)
            and (id_prefix is null or starts_with(l.id, id_prefix))
            and (on_executor is null or l.executor_id = any (array(
                select x.id from holdfast.executors x where x.name = on_executor)))
            and (created_from is null or l.created_at >= created_from)
            and (created_until is null or l.created_at < created_until)
            and (finished_from is null or l.finished_at >= finished_from)
            and (finished_until is null or l.finished_at < finished_until)
            and (before_moment is null or (l.created_at, l.id) < (before_moment, before_id))
        order by l.created_at desc, l.id desc
        limit most) w
    left join holdfast.executors e on e.id = w.executor_id
    order by w.created_at desc, w.id desc;
end
$$;
