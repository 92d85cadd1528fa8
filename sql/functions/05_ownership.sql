-- Whose workflow is it? An executor is one incarnation of one process. Alive: its listener's session holds the advisory lock
-- (holdfast.alive, id), which falls the moment the process dies, and its heartbeat is fresh by the database's clock.
-- Fenced: none of its batches can land any more [W14].

-- A new executor, alive from now on: the calling session holds its lock. It promises a heartbeat every so many seconds, and
-- to stop by itself when none has got through for the time of its lease.
create or replace function holdfast.register_executor(
    executor_name text, version text, every double precision default 1, lease_time double precision default 10
) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    executor integer;
begin
    insert into holdfast.executors (name, app_version, started_at, heartbeat_at, heartbeat, lease)
    values (executor_name, version, holdfast.now(), holdfast.now(), every, lease_time) returning id into executor;
    perform pg_advisory_lock(hashtext('holdfast.alive'), executor);
    return executor;
end
$$;

-- The heartbeat and the bell to oneself, in one statement. False: this executor has been fenced.
-- held: the calling session already holds the lock; a new session takes it as soon as the old one has let go.
-- suspects: some other executor has missed its heartbeat: worth a closer look.
create or replace function holdfast.beat(executor integer, held boolean, channel text, bell text)
returns table (alive boolean, locked boolean, suspects boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as
$$
begin
    perform pg_notify(channel, bell);
    alive := true;
    locked := held;
    suspects := false;
    if executor is not null then
        update holdfast.executors e set heartbeat_at = holdfast.now() where e.id = executor and e.fenced_at is null;
        alive := found;
        if alive and not held then
            locked := pg_try_advisory_lock(hashtext('holdfast.alive'), executor);
        end if;
        suspects := exists (
            select from holdfast.executors e
            where e.fenced_at is null and e.id <> executor
                and e.heartbeat_at < holdfast.now() - make_interval(secs => 1.5 * e.heartbeat));
    end if;
    return next;
end
$$;

-- Executors that are not fenced, and what can be seen of their life: is the lock held, and how old is the heartbeat, in
-- heartbeats and in leases of that executor.
create or replace function holdfast.list_executors(except_id integer)
returns table (
    id integer, name text, locked boolean, beats_missed double precision, leases_missed double precision,
    heartbeat_at timestamptz)
language sql volatile set search_path = pg_catalog, pg_temp as
$$
    select e.id, e.name,
        exists (
            select from pg_locks l
            where l.locktype = 'advisory' and l.objsubid = 2 and l.granted
                and l.database = (select d.oid from pg_database d where d.datname = current_database())
                and l.classid = hashtext('holdfast.alive')::bigint::bit(32)::bigint::oid and l.objid = e.id::oid),
        extract(epoch from holdfast.now() - e.heartbeat_at)::double precision / e.heartbeat,
        extract(epoch from holdfast.now() - e.heartbeat_at)::double precision / e.lease, e.heartbeat_at
    from holdfast.executors e
    where e.fenced_at is null and e.id is distinct from except_id
    order by e.id
$$;

-- After this commits nothing of the executor can land, and its workflows are free for whoever knows their names.
-- Gives the number of workflows freed. Waits for its batches in flight (lock_timeout is the caller's to set).
-- graceful: it gives them back itself, so that its claims of them have come to something [W13].
drop function if exists holdfast.fence(integer, text);
create or replace function holdfast.fence(executor integer, channel text, graceful boolean default false) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    freed integer;
    bells text[];
begin
    perform pg_advisory_xact_lock(hashtext('holdfast.fence'), executor);
    update holdfast.executors e set fenced_at = coalesce(e.fenced_at, holdfast.now()) where e.id = executor;
    perform from holdfast.workflows w where w.executor_id = executor and w.status = 2 order by w.id for no key update;
    with released as (
        update holdfast.workflows w
        set executor_id = null, settled = case when graceful then w.claims else w.settled end
        where w.executor_id = executor and w.status = 2
        returning w.name,
            case when w.claims - w.settled >= 2 then 'suspect' when w.parked is null then 'work' else 'parked' end as kind)
    select count(*), array_agg(distinct holdfast.wake_key(r.kind, r.name, '')) into freed, bells from released r;
    perform holdfast.ring(channel, bells);
    return freed;
end
$$;

-- Workflows of an executor that have been asked to end. It is asked after every claim, so only its own are read.
create or replace function holdfast.list_cancelling(executor integer) returns table (id text, epoch integer)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as
$$
begin
    return query
    select w.id, w.epoch from holdfast.workflows w
    where w.executor_id = executor and w.executor_id is not null and w.status = 2 and w.cancelling;
end
$$;

-- Ends the sessions that hold the fence of an executor, so that fence() need not wait for one that hangs.
create or replace function holdfast.evict(executor integer) returns integer
language sql volatile set search_path = pg_catalog, pg_temp as
$$
    select count(pg_terminate_backend(l.pid))::integer from pg_locks l
    where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.pid <> pg_backend_pid()
        and l.database = (select d.oid from pg_database d where d.datname = current_database())
        and l.classid = hashtext('holdfast.fence')::bigint::bit(32)::bigint::oid and l.objid = executor::oid
$$;

-- Are there workflows that `claim_workflows` would take, whether somebody has locked them or not?
create or replace function holdfast.any_free(me integer, names text[], running text[], kind text) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as
$$
begin
    return kind <> 'parked' and exists (
            select from holdfast.workflows w
            where w.status = 2 and w.executor_id is null and w.parked is null and w.name = any (names)
                and (w.claims - w.settled >= 2) = (kind = 'suspect'))
        or kind = 'work' and exists (
            select from holdfast.workflows w where w.status = 0 and w.name = any (names))
        or kind <> 'work' and exists (
            select from holdfast.workflows w
            where w.status = 2 and w.executor_id is null and w.parked is not null and w.name = any (names)
                and me <> all (w.parked) and (w.claims - w.settled >= 2) = (kind = 'suspect'))
        or running is not null and exists (
            select from holdfast.workflows w
            where w.status = 2 and w.executor_id = me and w.executor_id is not null and w.name = any (names)
                and w.id <> all (running));
end
$$;

-- Takes free workflows of these names. kind 'work': new ones, and what a fenced executor has left; 'parked': those whose
-- code did not match where others ran them, and that this executor has not parked itself; 'suspect': those whose last two
-- claims have come to nothing as far as is known, perhaps because they take their processes down.
-- timeouts and recoveries: of each name, its own timeout in seconds or NULL, and how many claims may come to nothing [W13].
-- Never waits for whoever has locked one: if nothing else is free, it gives one row of NULLs, and the caller looks again
-- soon, for who lets go of a lock may have changed nothing, and rings no bell. Nothing is given to an executor that is
-- fenced. New ones: of the name of which one has waited longest, in their order, then of the next; so only what is taken is
-- read and locked, however many are waiting.
-- running: NULL, or all that this executor runs; then it also takes what it owns and does not run: the fruit of a claim
-- whose reply was lost. number: of this try, ever larger; a try that comes after a later one takes nothing.
-- A workflow whose claims have come to nothing too often is not given out: it is QUARANTINED, or CANCELLED if it was to end.
drop function if exists holdfast.claim_workflows(
    integer, integer, text[], double precision[], integer[], integer, text[], text, text);
create or replace function holdfast.claim_workflows(
    me integer, number bigint, names text[], timeouts double precision[], recoveries integer[], most integer,
    running text[],
    kind text, channel text)
returns table (
    id text, name text, status smallint, epoch integer, claims integer, generation integer, input bytea, origin text,
    cancelling boolean, parent_id text, remaining double precision)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as
$$
declare
    found_ids text[];
    mark bigint;
    bells text[];
begin
    perform pg_advisory_xact_lock_shared(hashtext('holdfast.fence'), me);
    update holdfast.executors e set last_claim = number where e.id = me and e.fenced_at is null and e.last_claim < number;
    if not found then
        return;
    end if;
    with free as materialized (
        select f.id from (
            select w.id from holdfast.workflows w
            where kind <> 'parked' and w.status = 2 and w.executor_id is null and w.parked is null and w.name = any (names)
                and (w.claims - w.settled >= 2) = (kind = 'suspect')
            limit most for no key update skip locked) f
        union all
        select f.id from (
            select w.id from (
                select n.name from unnest(names) as n (name)
                cross join lateral (
                    select w.created_at from holdfast.workflows w where w.status = 0 and w.name = n.name
                    order by w.created_at limit 1) oldest
                where kind = 'work'
                order by oldest.created_at) n
            cross join lateral (
                select w.id from holdfast.workflows w where w.status = 0 and w.name = n.name
                order by w.created_at limit most for no key update skip locked) w
            limit most) f
        union all
        select f.id from (
            select w.id from holdfast.workflows w
            where kind <> 'work' and w.status = 2 and w.executor_id is null and w.parked is not null and w.name = any (names)
                and me <> all (w.parked) and (w.claims - w.settled >= 2) = (kind = 'suspect')
            limit most for no key update skip locked) f
        union all
        select f.id from (
            select w.id from holdfast.workflows w
            where running is not null and w.status = 2 and w.executor_id = me and w.executor_id is not null
                and w.name = any (names) and w.id <> all (running)
            limit most for no key update skip locked) f
        limit most)
    select array_agg(f.id) into found_ids from free f;
    if found_ids is null then
        if holdfast.any_free(me, names, running, kind) then
            return next;
        end if;
        return;
    end if;
    mark := nextval('holdfast.batches') * 8192;
    for id, name, status, epoch, claims, generation, input, origin, cancelling, parent_id, remaining in
        with judged as materialized (
            select w.id, s.settled, w.claims - s.settled >= recoveries[array_position(names, w.name)] as spent
            from unnest(found_ids) as f (id)
            cross join lateral (select * from holdfast.workflows w where w.id = f.id limit 1) w
            left join lateral (
                select true as found from holdfast.steps r where r.workflow_id = w.id and r.seq > w.claim_mark limit 1) r
                on w.claims > 0
            -- Where it has been set back to fewer claims than were settled, none is settled.
            cross join lateral (
                select case when r.found then w.claims when w.settled > w.claims then 0 else w.settled end as settled) s)
        update holdfast.workflows w
        set status = case when not j.spent then 2 when w.cancelling then 5 else 6 end,
            executor_id = case when not j.spent then me end, epoch = w.epoch + 1,
            claims = w.claims + case when j.spent then 0 else 1 end, settled = j.settled, claim_mark = mark,
            cancelling = w.cancelling and not j.spent,
            finished_at = case when j.spent then holdfast.now() end,
            started_at = coalesce(w.started_at, holdfast.now()),
            deadline = case when w.started_at is not null then w.deadline
                else holdfast.now() + make_interval(secs => coalesce(w.timeout, timeouts[array_position(names, w.name)])) end
        from judged j
        where w.id = j.id
        returning w.id, w.name, w.status, w.epoch, w.claims, w.generation, w.input, w.origin, w.cancelling, w.parent_id,
            extract(epoch from w.deadline - holdfast.now())::double precision
    loop
        if status <> 2 then
            bells := bells || holdfast.wake_key('end', id, '');
        end if;
        return next;
    end loop;
    perform holdfast.ring(channel, bells);
end
$$;

-- Workflows of this executor whose replay has come to rest, and whose claims have so come to something [W13].
create or replace function holdfast.settle_workflows(me integer, ids text[], epochs integer[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as
$$
begin
    update holdfast.workflows w set settled = w.claims
    from (select * from unnest(ids, epochs) as s (id, epoch) order by s.id collate "C") s
    where w.id = s.id and w.epoch = s.epoch and w.executor_id is not distinct from me and w.status + 0 = 2
        and w.settled < w.claims;
end
$$;

-- Gives back a workflow whose code here does not match its journal: free for every executor but those that have done the
-- same [W5]. Of these, the dead are forgotten. One that was to end is CANCELLED, without its code. Gives its status, NULL
-- if this executor has lost it. cause: why it was cancelled, if there is more to say than that it was.
create or replace function holdfast.park_workflow(me integer, workflow text, run_epoch integer, cause bytea, channel text)
returns smallint
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    now_status smallint;
    now_name text;
begin
    perform pg_advisory_xact_lock_shared(hashtext('holdfast.fence'), me);
    update holdfast.workflows w
    set status = case when w.cancelling then 5 else 2 end, cancelling = false, executor_id = null, settled = w.claims,
        parked = array(select e.id from holdfast.executors e where e.id = any (w.parked) and e.fenced_at is null) || me,
        output = case when w.cancelling then cause end,
        finished_at = case when w.cancelling then holdfast.now() end
    -- Written so that only the key can serve it: no index over executors or statuses, whose rows are far more.
    where w.id = workflow and w.executor_id is not distinct from me and w.epoch = run_epoch and w.status + 0 = 2
    returning w.status, w.name into now_status, now_name;
    perform holdfast.ring(channel, array[
        case now_status
            when 2 then holdfast.wake_key('parked', now_name, '')
            when 5 then holdfast.wake_key('end', workflow, '') end])
    where now_status is not null;
    return now_status;
end
$$;

-- Asks workflows and their children to end [W10]: what nobody runs is CANCELLED at once, what runs is told to its executor.
-- What an executor has left PENDING is ended by whoever takes it next, which runs its clean-up; what has been parked, by
-- nobody: it is CANCELLED at once.
-- Gives each workflow that was active: its id, and its executor when it is still running there.
-- epochs: of each, NULL, or nothing happens if it has been resumed, or taken by another, since that run of it was cancelled.
-- Whoever asks several families at once locks their rows in one order, and those of others that are to be locked with them.
drop function if exists holdfast.cancel_workflows(text[], integer[], text);
create or replace function holdfast.cancel_workflows(
    roots text[], epochs integer[], channel text, others text[] default '{}')
returns table (id text, executor_id integer)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as
$$
declare
    members text[];
    causes text[];
    bell text;
    bells text[];
begin
    with recursive family as (
        select w.id, w.id as root from unnest(roots, epochs) as r (id, epoch)
        cross join lateral (select w.id, w.epoch, w.status from holdfast.workflows w where w.id = r.id limit 1) w
        where r.epoch is null or w.epoch = r.epoch and w.status in (2, 5)
        union
        select c.id, f.root from family f
        cross join lateral (
            select c.id from holdfast.workflows c where c.parent_id = f.id and c.parent_id is not null) c)
    select array_agg(f.id order by f.id), array_agg(f.root order by f.id) into members, causes
    from (select distinct on (f.id) f.id, f.root from family f order by f.id, f.root) f;
    perform from (select f.id from unnest(members || others) as f (id) order by f.id collate "C") f
    cross join lateral (select from holdfast.workflows w where w.id = f.id limit 1 for no key update) w;
    -- A root may have been resumed before it could be locked.
    select array_agg(f.id order by f.id), array_agg(f.root order by f.id) into members, causes
    from unnest(members, causes) as f (id, root)
    where not exists (
        select from unnest(roots, epochs) as r (id, epoch)
        cross join lateral (select w.epoch, w.status from holdfast.workflows w where w.id = r.id limit 1) w
        where r.id = f.root and r.epoch is not null and not (w.epoch = r.epoch and w.status in (2, 5)));
    for id, executor_id, bell in
        update holdfast.workflows w
        set status = case when w.status = 2 and (w.executor_id is not null or w.parked is null) then 2 else 5 end,
            cancelling = w.status = 2 and (w.executor_id is not null or w.parked is null),
            cancelled_with = case when w.cancelling then coalesce(w.cancelled_with, f.root) else f.root end,
            finished_at = case when w.status = 2 and (w.executor_id is not null or w.parked is null) then null
                else holdfast.now() end
        from unnest(members, causes) as f (id, root)
        where w.id = f.id and w.status + 0 < 3
        returning w.id, case when w.status = 2 then w.executor_id end, case w.status
            when 2 then holdfast.wake_key('executor', coalesce(w.executor_id, 0)::text, '')
            else holdfast.wake_key('end', w.id, '') end
    loop
        bells := bells || bell;
        return next;
    end loop;
    perform holdfast.ring(channel, bells);
end
$$;

-- The same of one.
drop function if exists holdfast.cancel_workflow(text, text);
create or replace function holdfast.cancel_workflow(workflow text, channel text, run_epoch integer default null)
returns table (id text, executor_id integer)
language sql volatile set search_path = pg_catalog, pg_temp as
$$
    select c.id, c.executor_id from holdfast.cancel_workflows(array[workflow], array[run_epoch], channel) c
$$;

-- The record of a @transaction step, written in the user's own transaction just before its COMMIT. Takes the fence last.
-- False: the step is already recorded, or the executor has lost the workflow: the caller rolls back.
create or replace function holdfast.record_transaction(
    me integer, workflow text, run_epoch integer, step text, step_name text, result bytea, tries smallint,
    elapsed double precision
) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    place bigint := nextval('holdfast.batches') * 8192;
begin
    perform pg_advisory_xact_lock_shared(hashtext('holdfast.fence'), me);
    insert into holdfast.steps (workflow_id, step_id, seq, kind, name, outcome, attempts, output, started_at, finished_at)
    values (workflow, step, place, 'transaction', step_name, 0, tries, result,
        holdfast.now() - make_interval(secs => elapsed), holdfast.now())
    on conflict do nothing;
    if not found then
        return null;
    end if;
    perform from holdfast.executors e where e.id = me and e.fenced_at is null;
    if not found then
        return null;
    end if;
    perform from holdfast.workflows w
    where w.id = workflow and w.executor_id is not distinct from me and w.epoch = run_epoch and w.status + 0 = 2;
    return case when found then place end;
end
$$;
