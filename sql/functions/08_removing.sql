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

-- Removes a workflow whose row the caller has locked: as many rows as it may, the workflow's own included; gives their
-- number. One more than it may: there is more to remove.
create or replace function holdfast.remove_workflow(workflow text, most integer, channel text) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan as
$$
declare
    deleted integer := holdfast.remove_rows(workflow, most);
begin
    if deleted < most then
        delete from holdfast.workflows w where w.id = workflow;
        perform holdfast.ring(channel, array[holdfast.wake_key('end', workflow, '')]);
    else
        update holdfast.workflows w set removing = true where w.id = workflow and w.removing is null;
    end if;
    return deleted + 1;
end
$$;

-- Deletes an ended workflow, at most so many rows of it in one transaction. Says `unknown`, `active`, `deleted`, or `more`.
create or replace function holdfast.delete_workflow(workflow text, most integer, channel text) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    state smallint;
begin
    select w.status into state from holdfast.workflows w where w.id = workflow for update;
    if state is null then
        return 'unknown';
    elsif state < 3 then
        return 'active';
    end if;
    return case when holdfast.remove_workflow(workflow, most, channel) > most then 'more' else 'deleted' end;
end
$$;

-- Deletes workflows that ended more than so many seconds ago, the oldest first, and what an earlier removal has left half
-- done: at most so many rows in one transaction, and nothing that somebody holds. Not the children of an active parent, who
-- may still ask for their results. from_moment: where an earlier call has come to. removed: workflows; reached: where this
-- call has come to, NULL when it has seen everything.
create or replace function holdfast.prune_workflows(
    age double precision, from_moment timestamptz, most integer, channel text
) returns table (removed integer, reached timestamptz)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_sort = off as
$$
declare
    next_one record;
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
        free := free - holdfast.remove_workflow(next_one.id, free, channel);
        removed := removed + case when free < 0 then 0 else 1 end;
        if free <= 0 then
            return next;
            return;
        end if;
    end loop;
    reached := null;
    return next;
end
$$;
