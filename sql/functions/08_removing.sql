-- Workflows that are removed, in short transactions of so many rows. Of one whose rows are too many for a single transaction
-- the row in `workflows` goes last, and says meanwhile that it is being removed.

-- Deletes at most so many rows that belong to a workflow, in whatever tables; gives their number.
create or replace function holdfast.remove_rows(workflow text, most integer) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as
$$
declare
    free integer := most;
    deleted integer;
begin
    delete from holdfast.stream_values where ctid = any (array(
        select v.ctid from holdfast.stream_values v where v.workflow_id = workflow limit free));
    get diagnostics deleted = row_count;
    free := free - deleted;
    delete from holdfast.events where ctid = any (array(
        select e.ctid from holdfast.events e where e.workflow_id = workflow limit free));
    get diagnostics deleted = row_count;
    free := free - deleted;
    delete from holdfast.messages where ctid = any (array(
        select m.ctid from holdfast.messages m where m.workflow_id = workflow and m.consumed_by is not null limit free));
    get diagnostics deleted = row_count;
    free := free - deleted;
    delete from holdfast.messages where ctid = any (array(
        select m.ctid from holdfast.messages m where m.workflow_id = workflow and m.consumed_by is null limit free));
    get diagnostics deleted = row_count;
    free := free - deleted;
    delete from holdfast.steps where ctid = any (array(
        select s.ctid from holdfast.steps s where s.workflow_id = workflow limit free));
    get diagnostics deleted = row_count;
    free := free - deleted;
    delete from holdfast.streams where ctid = any (array(
        select c.ctid from holdfast.streams c where c.workflow_id = workflow limit free));
    get diagnostics deleted = row_count;
    return most - free + deleted;
end
$$;

-- Removes a workflow whose row the caller has locked, and before it the children that ended before a moment and whose ids
-- were made from its own (id/step), with theirs: so that the id is free, and whoever uses it again has children of his own.
-- All other children stay, and are nobody's: none can be taken for the new one's. While a fork of it is active, which may ask
-- for them, all of them do. At most so many rows at once; a child that somebody holds is passed over.
-- rows: deleted or changed; removed: workflows that are gone; done: this one is.
drop function if exists holdfast.remove_workflow(text, integer, text);
create or replace function holdfast.remove_workflow(
    workflow text, most integer, before timestamptz, channel text, out rows integer, out removed integer, out done boolean
) language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as
$$
declare
    child record;
    gone record;
    forked boolean := exists (
        select from holdfast.workflows f where f.origin = workflow and f.origin is not null and f.status <= 2);
begin
    rows := 0;
    removed := 0;
    for child in
        select c.id, c.status > 2 and c.finished_at < before and not forked and c.id = workflow || '/' || c.parent_step as goes
        from holdfast.workflows c where c.parent_id = workflow and c.parent_id is not null
        limit most for update skip locked
    loop
        exit when rows >= most;
        if child.goes then
            select r.rows, r.removed into gone
            from holdfast.remove_workflow(child.id, most - rows, before, channel) r;
            rows := rows + gone.rows;
            removed := removed + gone.removed;
        else
            update holdfast.workflows w set parent_id = null, parent_step = null where w.id = child.id;
            rows := rows + 1;
        end if;
    end loop;
    if rows < most then
        rows := rows + holdfast.remove_rows(workflow, most - rows);
    end if;
    done := rows < most
        and not exists (select from holdfast.workflows c where c.parent_id = workflow and c.parent_id is not null);
    if done then
        delete from holdfast.workflows w where w.id = workflow;
        perform holdfast.ring(channel, array[holdfast.wake_key('end', workflow, '')]);
        rows := rows + 1;
        removed := removed + 1;
    else
        update holdfast.workflows w set removing = true where w.id = workflow and w.removing is null;
    end if;
end
$$;

-- Deletes an ended workflow with the children of remove_workflow, at most so many rows in one transaction. Says `unknown`,
-- `active`, `deleted`, or `more`. Who holds one of its children is waited for.
create or replace function holdfast.delete_workflow(workflow text, most integer, channel text) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as
$$
declare
    state smallint;
    family text[];
begin
    select w.status into state from holdfast.workflows w where w.id = workflow;
    if state > 2 then
        select array_agg(f.id order by f.id collate "C") into family from (
            select workflow as id
            union all
            (select c.id from holdfast.workflows c where c.parent_id = workflow and c.parent_id is not null limit most)) f;
        perform from unnest(family) as f (id)
        cross join lateral (select from holdfast.workflows w where w.id = f.id limit 1 for update) w;
        select w.status into state from holdfast.workflows w where w.id = workflow;
    end if;
    if state is null then
        return 'unknown';
    elsif state < 3 then
        return 'active';
    end if;
    return (
        select case when r.done then 'deleted' else 'more' end
        from holdfast.remove_workflow(workflow, most, 'infinity', channel) r);
end
$$;

-- Deletes workflows that ended more than so many seconds ago, the oldest first, and what an earlier removal has left half
-- done: at most so many rows in one transaction, and nothing that somebody holds. Not the children of an active parent, who
-- may still ask for their results. from_moment: where an earlier call has come to. removed: workflows; reached: where this
-- call has come to, NULL when it has seen everything. Then it forgets executors that were fenced as long ago; not those that
-- a workflow may name, which has ended before its executor was fenced.
create or replace function holdfast.prune_workflows(
    age double precision, from_moment timestamptz, most integer, channel text
) returns table (removed integer, reached timestamptz)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_sort = off as
$$
declare
    next_one record;
    gone record;
    free integer := most;
    latest timestamptz := holdfast.now() - make_interval(secs => age);
begin
    removed := 0;
    reached := from_moment;
    for next_one in
        select f.id, f.finished_at from (
            select w.id, null::timestamptz as finished_at from holdfast.workflows w
            where w.removing limit most for update skip locked) f
        union all
        select f.id, f.finished_at from (
            select w.id, w.finished_at from holdfast.workflows w
            left join lateral (select p.status from holdfast.workflows p where p.id = w.parent_id limit 1) p on true
            where w.finished_at >= from_moment and w.finished_at < latest and w.removing is null
                and (p.status is null or p.status > 2)
            order by w.finished_at limit most for update of w skip locked) f
    loop
        reached := coalesce(next_one.finished_at, reached);
        -- It may have gone with its parent.
        continue when not exists (select from holdfast.workflows w where w.id = next_one.id);
        select r.rows, r.removed into gone from holdfast.remove_workflow(next_one.id, free, latest, channel) r;
        free := free - gone.rows;
        removed := removed + gone.removed;
        if free <= 0 then
            return next;
            return;
        end if;
    end loop;
    reached := null;
    delete from holdfast.executors x where x.id in (
        select e.id from holdfast.executors e
        where e.fenced_at < least(latest, (
            select w.finished_at from holdfast.workflows w where w.finished_at is not null
            order by w.finished_at limit 1))
        limit most for update skip locked);
    return next;
end
$$;
