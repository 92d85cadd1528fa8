-- Ending is not the end: workflows that go on, or go another way. Nothing here is hot.

-- The execution that a step belongs to: after continue_as its id says which.
create or replace function holdfast.generation_of(step text) returns integer
language sql immutable set search_path = pg_catalog, pg_temp as
$$ select coalesce(substring(step from '^([0-9]+)~')::integer, 0) $$;

-- Takes out of the journal of an ended workflow what its cancellation has put there, so that a replay is not cancelled: the
-- calls that were interrupted, and everything that completed after the first of them, which is its clean-up. What an
-- interruption only lies over comes out again, for it has had its effect. resumed: workflows whose CANCELLED it may have
-- seen before its own, which it must not, for they go on with it; nor what it did then. Effects of the clean-up stay, and
-- say that they belong to no step any more; but messages that it took come again, and streams that it closed are open
-- again.
create or replace function holdfast.rewind_workflow(workflow text, resumed text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as
$$
declare
    first_seq bigint;
    first_moment timestamptz;
    seen_moment timestamptz;
    gone text[];
begin
    select min(s.seq), min(s.finished_at), min(s.finished_at) filter (where s.outcome = 8)
    into first_seq, first_moment, seen_moment from holdfast.steps s
    where s.workflow_id = workflow and (s.outcome = 2 or s.outcome = 8 and s.target = any (resumed));
    if first_seq is null then
        return;
    end if;
    with deleted as (
        delete from holdfast.steps s
        where s.workflow_id = workflow
            and (s.seq >= first_seq or s.finished_at is null and s.started_at >= first_moment)
            and (s.covered is null or s.covered = 8 and s.target = any (resumed) or s.started_at >= seen_moment)
        returning s.step_id)
    select array_agg(d.step_id) into gone from deleted d;
    update holdfast.steps s set outcome = s.covered, covered = null
    where s.workflow_id = workflow and s.covered is not null;
    update holdfast.messages m set consumed_by = null where m.workflow_id = workflow and m.consumed_by = any (gone);
    delete from holdfast.streams c where c.workflow_id = workflow and c.step_id = any (gone) and c.oldest = 0;
    update holdfast.streams c set closed_at = null where c.workflow_id = workflow and c.step_id = any (gone);
    update holdfast.events e set step_id = e.step_id || ' cancelled'
    where e.workflow_id = workflow and e.step_id = any (gone);
    update holdfast.stream_values v set step_id = v.step_id || ' cancelled'
    where v.workflow_id = workflow and v.step_id = any (gone);
end
$$;

-- Lets a workflow that has ended go on from its journal, and with it the children that were cancelled with it [W12].
-- forgiven: an ERROR is taken up only if it is the one of this epoch.
-- Says `resumed`, or why not: `unknown`, `active`, `success`, `error` with epoch and error; or `wait`: a workflow, of this
-- id, is still cleaning up.
create or replace function holdfast.resume_workflow(workflow text, forgiven integer, channel text)
returns table (said text, id text, epoch integer, output bytea)
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as
$$
declare
    root record;
    family text[];
    member text;
begin
    with recursive related as (
        select w.id, w.cancelled_with from holdfast.workflows w where w.id = workflow and w.removing is null
        union
        select c.id, c.cancelled_with from holdfast.workflows c
        join related r on c.parent_id = r.id and c.cancelled_with in (r.cancelled_with, r.id)
        where c.parent_id is not null and c.removing is null and (c.status = 5 or c.cancelling))
    select array_agg(r.id order by r.id) into family from related r;
    perform from holdfast.workflows w where w.id = any (family) order by w.id for no key update;
    select w.* into root from holdfast.workflows w where w.id = workflow and w.removing is null;
    if root.id is null then
        return query select 'unknown', workflow, null::integer, null::bytea;
    elsif root.status < 3 and not root.cancelling then
        return query select 'active', workflow, null::integer, null::bytea;
    elsif root.status = 3 then
        return query select 'success', workflow, null::integer, null::bytea;
    elsif root.status = 4 and forgiven is distinct from root.epoch then
        return query select 'error', workflow, root.epoch, root.output;
    else
        return query
        select 'wait', w.id, null::integer, null::bytea from holdfast.workflows w
        where w.id = any (family) and w.status = 2 and w.cancelling limit 1;
    end if;
    if found then
        return;
    end if;
    select array_agg(w.id) into family from holdfast.workflows w
    where w.id = any (family) and (w.id = workflow or w.status = 5);
    foreach member in array family loop
        perform holdfast.rewind_workflow(member, family);
    end loop;
    -- A timeout counts anew. What the workflow's definition has given it was noted with the first claim.
    update holdfast.workflows w
    set status = 0, cancelling = false, cancelled_with = null, executor_id = null, claims = 0, settled = 0, parked = null,
        output = null,
        timeout = coalesce(w.timeout, extract(epoch from w.deadline - w.started_at)),
        deadline = case when w.deadline is not null and w.started_at is not null then holdfast.now()
            + coalesce(make_interval(secs => w.timeout), w.deadline - w.started_at) end,
        wake_at = null, finished_at = null
    where w.id = any (family);
    perform holdfast.ring(channel, array(
        select distinct holdfast.wake_key('work', w.name, '') from holdfast.workflows w where w.id = any (family)));
    return query select 'resumed', workflow, null::integer, null::bytea;
end
$$;

-- A new workflow with what another had recorded before a step of it completed, in the same order, and with the events and
-- stream values that the steps it takes along have written, numbered anew [W12]. Of what a cancellation has put into the
-- journal it takes nothing. Messages stay where they are; children that were started stay children of the original.
-- Says `forked`, also when an earlier try has (same id and token), or why not: `unknown`, `no step`, `conflict`.
create or replace function holdfast.fork_workflow(
    original text, before_step text, fork text, token uuid, channel text
) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_custom_plan as
$$
declare
    source record;
    known boolean;
    cut bigint;
    interrupted bigint;
begin
    -- Ends of the original go on meanwhile; removing it waits.
    select w.* into source from holdfast.workflows w where w.id = original and w.removing is null for key share;
    if not found then
        return 'unknown';
    end if;
    -- What runs inside a call, as the items of an `each` do, has ids that begin with its own.
    select coalesce(bool_or(s.step_id = before_step or starts_with(s.step_id, before_step || '#')), false),
        min(s.seq) filter (where s.step_id = before_step or starts_with(s.step_id, before_step || '#')),
        min(s.seq) filter (where s.outcome = 2)
    into known, cut, interrupted
    from holdfast.steps s where s.workflow_id = original and holdfast.generation_of(s.step_id) = source.generation;
    if not known then
        return 'no step';
    end if;
    insert into holdfast.workflows (id, name, status, epoch, start_token, queue, priority, partition_key, app_version,
        attributes, input, origin, timeout, generation, created_at)
    values (fork, source.name, 0, 1, token, source.queue, source.priority, source.partition_key, source.app_version,
        source.attributes, source.input, coalesce(source.origin, original), source.timeout, source.generation,
        holdfast.now())
    on conflict do nothing;
    if not found then
        return (select case when w.start_token = token then 'forked' else 'conflict' end
            from holdfast.workflows w where w.id = fork);
    end if;
    insert into holdfast.steps (workflow_id, step_id, seq, kind, name, target, outcome, attempts, choice, output, origin,
        deadline, started_at, finished_at)
    select fork, s.step_id, s.seq, s.kind, s.name, s.target, coalesce(s.covered, s.outcome), s.attempts, s.choice, s.output,
        coalesce(s.origin, original), s.deadline, s.started_at, s.finished_at
    from holdfast.steps s
    where s.workflow_id = original and s.finished_at is not null
        and (cut is null or s.seq < cut) and (interrupted is null or s.seq < interrupted or s.covered <> 8)
        and holdfast.generation_of(s.step_id) = source.generation;
    -- Of executions before the last continue_as there is no journal: all that they have said has happened.
    insert into holdfast.events (workflow_id, key, revision, payload, origin, step_id, created_at)
    select fork, e.key, row_number() over (partition by e.key order by e.revision), e.payload, coalesce(e.origin, original),
        e.step_id, e.created_at
    from holdfast.events e
    where e.workflow_id = original and (
        holdfast.generation_of(e.step_id) < source.generation
        or e.step_id in (select s.step_id from holdfast.steps s where s.workflow_id = fork));
    insert into holdfast.stream_values (workflow_id, key, "offset", payload, origin, attempt, step_id, created_at)
    select fork, v.key, row_number() over (partition by v.key order by v."offset") - 1, v.payload,
        coalesce(v.origin, original), v.attempt, v.step_id, v.created_at
    from holdfast.stream_values v
    where v.workflow_id = original and (
        holdfast.generation_of(v.step_id) < source.generation
        or v.step_id in (select s.step_id from holdfast.steps s where s.workflow_id = fork));
    insert into holdfast.streams (workflow_id, key, closed_at, step_id)
    select fork, c.key, c.closed_at, c.step_id from holdfast.streams c
    where c.workflow_id = original and c.closed_at is not null and (
        holdfast.generation_of(c.step_id) < source.generation
        or c.step_id in (select s.step_id from holdfast.steps s where s.workflow_id = fork));
    perform holdfast.ring(channel, array[holdfast.wake_key('work', source.name, '')]);
    return 'forked';
end
$$;
