-- What commit_batch is made of: one function per noun. Each gets the batch's arrays of its noun, and of the whole batch
--   owned   the ids of the workflows that may still write, NULL where this executor has lost one
--   done    places that an earlier try of this batch has already committed
-- and leaves out whatever belongs to either. They are called by commit_batch only, under its locks and its plan settings:
-- only the index can serve the look-ups (LATERAL … LIMIT 1 by key; never EXISTS in a select list, which may be hashed over
-- the whole table), however small a table was when the plan was made.
-- They are plpgsql because a session keeps the plans of plpgsql and, before PostgreSQL 18, plans SQL functions anew each
-- time.

-- Workflows that begin. Says something only of those it did not create.
-- code 6: the id belongs to another workflow, or to any (implied is NULL); 11: it exists and is attached to, note = its
-- name;
-- 12: it was to run here, but this executor has lost its lease: it is enqueued instead.
create or replace function holdfast.commit_starts(
    me integer, alive boolean, owned text[], done integer[], places integer[], runs integer[], steps text[], ids text[],
    names text[], tokens uuid[], heres boolean[], implieds boolean[], inputs bytea[], timeouts double precision[],
    attributes text[], version text
) returns table (r_place integer, r_code smallint, r_note text)
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    created integer;
    wanted integer;
begin
    select count(*) into wanted from unnest(places, runs) as s (place, run)
    where (s.run = 0 or owned[s.run] is not null) and s.place <> all (done);
    insert into holdfast.workflows (id, name, status, executor_id, epoch, claims, start_token, parent_id, parent_step,
        app_version, attributes, input, timeout, deadline, created_at, started_at)
    select s.id, s.name, case when s.here and alive then 2 else 0 end, case when s.here and alive then me end,
        case when s.here and alive then 1 else 0 end, case when s.here and alive then 1 else 0 end, s.token,
        case when s.run > 0 then owned[s.run] end, s.step, version, s.attributes::jsonb, s.input, s.timeout,
        case when s.here and alive then holdfast.now() + make_interval(secs => s.timeout) end,
        holdfast.now(), case when s.here and alive then holdfast.now() end
    from unnest(places, runs, steps, ids, names, tokens, heres, inputs, timeouts, attributes)
        as s (place, run, step, id, name, token, here, input, timeout, attributes)
    where (s.run = 0 or owned[s.run] is not null) and s.place <> all (done)
    order by s.id collate "C", s.place
    on conflict do nothing;
    get diagnostics created = row_count;
    if not alive then
        return query
        select s.place, 12::smallint, null::text from unnest(places, heres) as s (place, here) where s.here;
    end if;
    if created < wanted then
        return query
        select s.place, (case
                when w.name <> s.name or s.implied is null then 6
                when s.implied and (w.parent_id is distinct from owned[s.run] or w.parent_step is distinct from s.step)
                    then 6
                else 11 end)::smallint, w.name
        from unnest(places, runs, steps, ids, names, tokens, implieds) as s (place, run, step, id, name, token, implied)
        cross join lateral (
            select w.name, w.start_token, w.parent_id, w.parent_step from holdfast.workflows w where w.id = s.id limit 1) w
        where (s.run = 0 or owned[s.run] is not null) and s.place <> all (done) and w.start_token <> s.token;
    end if;
end
$$;

-- Messages. Says: 4 the destination does not exist, 5 it has ended [M2]. A dedup key that is taken is dropped silently
-- [M3], after the end too: the message of that key has been accepted. Who is deleted while it is sent, and only what has
-- ended can be, does not exist.
create or replace function holdfast.commit_sends(
    owned text[], done integer[], places integer[], runs integer[], steps text[], destinations text[], topics text[],
    payloads bytea[], tokens uuid[], keys text[], requests text[]
) returns table (r_place integer, r_code smallint)
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    return query
    with wanted as materialized (
        select s.*, case when w.status <= 2 then w.status else held.status end as status, k.taken
        from (
            select * from unnest(places, runs, steps, destinations, topics, payloads, tokens, keys, requests)
                as s (place, run, step, destination, topic, payload, token, key, request)
            order by s.destination collate "C", s.place) s
        left join lateral (select w.status from holdfast.workflows w where w.id = s.destination limit 1) w on true
        left join lateral (
            select e.status from holdfast.workflows e where e.id = s.destination and w.status > 2 limit 1 for key share) held
            on true
        left join lateral (
            select true as taken from holdfast.messages m
            where m.workflow_id = s.destination and m.dedup_key = s.key limit 1) k
            on s.key is not null and w.status in (3, 4)
        where (s.run = 0 or owned[s.run] is not null) and s.place <> all (done)),
    sent as (
        insert into holdfast.messages (workflow_id, topic, payload, sender, sender_step, token, dedup_key, request,
            created_at)
        select s.destination, s.topic, s.payload, case when s.run > 0 then owned[s.run] end, s.step, s.token, s.key,
            s.request, holdfast.now()
        from wanted s
        where s.status not in (3, 4)
        order by s.destination collate "C", s.place
        on conflict (workflow_id, dedup_key) where dedup_key is not null do nothing)
    select s.place, (case when s.status is null then 4 else 5 end)::smallint
    from wanted s
    where s.status is null or (s.status in (3, 4) and s.taken is null);
end
$$;

-- Event values: the next revisions of their keys, in the order of their places [E1]. The reply to a request is one too, and
-- the first that is committed is the only one: any other is dropped silently, for a step may try again what it has done.
create or replace function holdfast.commit_events(
    owned text[], done integer[], places integer[], runs integer[], steps text[], keys text[], payloads bytea[],
    tokens uuid[]
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    insert into holdfast.events (workflow_id, key, revision, payload, step_id, token, created_at)
    select owned[e.run], e.key,
        coalesce(latest.revision, 0) + e.rank,
        e.payload, e.step, e.token, holdfast.now()
    from (
        select s.*, starts_with(s.key, '::reply:') as reply,
            row_number() over (partition by s.run, s.key order by s.place) as rank
        from unnest(places, runs, steps, keys, payloads, tokens) as s (place, run, step, key, payload, token)
        where owned[s.run] is not null and s.place <> all (done)) e
    left join lateral (
        select v.revision from holdfast.events v where v.workflow_id = owned[e.run] and v.key = e.key
        order by v.revision desc limit 1) latest on true
    where not e.reply or (e.rank = 1 and latest.revision is null);
end
$$;

-- Stream values: dense offsets in the order of the calls [S1], which go on where the values before have been trimmed. Says
-- 7 for a stream that is closed, in the table or by a record of this batch that was called earlier [S3].
create or replace function holdfast.commit_writes(
    owned text[], done integer[], places integer[], runs integer[], steps text[], keys text[], payloads bytea[],
    attempts smallint[], tokens uuid[], close_places integer[], close_runs integer[], close_keys text[]
) returns table (r_place integer, r_code smallint)
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    return query
    with wanted as materialized (
        select v.*, s.oldest, s.closed is not null or exists (
                select from unnest(close_places, close_runs, close_keys) as c (place, run, key)
                where c.run = v.run and c.key = v.key and c.place < v.place) as closed
        from unnest(places, runs, steps, keys, payloads, attempts, tokens)
            with ordinality as v (place, run, step, key, payload, attempt, token, number)
        left join lateral (
            select s.closed_at as closed, s.oldest from holdfast.streams s
            where s.workflow_id = owned[v.run] and s.key = v.key limit 1) s on true
        where owned[v.run] is not null and v.place <> all (done)),
    written as (
        insert into holdfast.stream_values (workflow_id, key, "offset", payload, attempt, step_id, token, created_at)
        select owned[v.run], v.key,
            greatest(latest."offset", v.oldest - 1, -1) + row_number() over (partition by v.run, v.key order by v.number),
            v.payload, v.attempt, v.step, v.token, holdfast.now()
        from wanted v
        left join lateral (
            select l."offset" from holdfast.stream_values l where l.workflow_id = owned[v.run] and l.key = v.key
            order by l."offset" desc limit 1) latest on true
        where not v.closed)
    select distinct v.place, 7::smallint from wanted v where v.closed;
end
$$;

-- Streams that are closed; once is enough. A stream that has been trimmed has a row already.
create or replace function holdfast.commit_closes(
    owned text[], done integer[], places integer[], runs integer[], steps text[], keys text[]
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    insert into holdfast.streams as s (workflow_id, key, closed_at, step_id)
    select distinct on (owned[c.run] collate "C", c.key collate "C") owned[c.run], c.key, holdfast.now(), c.step
    from unnest(places, runs, steps, keys) as c (place, run, step, key)
    where owned[c.run] is not null and c.place <> all (done)
    order by owned[c.run] collate "C", c.key collate "C", c.place
    on conflict (workflow_id, key) do update
        set closed_at = excluded.closed_at, step_id = excluded.step_id where s.closed_at is null;
end
$$;

-- How workflows end; or, where `names` has a name, how they go on under the same id: as that workflow, with an empty
-- journal, ENQUEUED for whoever knows it. Cancelling wins. Says 8 of one that was to go on and is CANCELLED instead.
-- The children of what is cancelled are cancelled with it, those included whose start was on its way at the time [W10].
-- Rows are locked in order of id; before anything else where more than one statement updates them.
create or replace function holdfast.commit_ends(
    owned text[], channel text, places integer[], runs integer[], statuses smallint[], outputs bytea[], names text[],
    inputs bytea[]
) returns table (r_place integer, r_code smallint)
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    if array_position(statuses, 5::smallint) is not null then
        perform holdfast.cancel_workflows(array(
            select owned[f.run] from unnest(runs, statuses) as f (run, status)
            where f.status = 5 and owned[f.run] is not null), null, channel, array(
            select owned[f.run] from unnest(runs) as f (run)));
    elsif array_remove(names, null) <> '{}' and cardinality(runs) > 1 then
        perform from (select owned[f.run] as id from unnest(runs) as f (run) order by owned[f.run] collate "C") f
        cross join lateral (select from holdfast.workflows w where w.id = f.id limit 1 for no key update) w;
    end if;
    if array_remove(names, null) <> '{}' then
        with continued as (
            update holdfast.workflows w
            set status = 0, name = f.name, input = f.input, origin = null, generation = w.generation + 1, executor_id = null,
                claims = 0, settled = 0, claim_mark = 0, parked = null, started_at = null, deadline = null,
                timeout = case when w.name = f.name then w.timeout end
            from unnest(runs, names, inputs) as f (run, name, input)
            where f.name is not null and w.id = owned[f.run] and not w.cancelling
            returning w.id)
        delete from holdfast.steps s using continued c where s.workflow_id = c.id;
    end if;
    return query
    with ended as (
        update holdfast.workflows w
        set status = case when w.cancelling then 5 else f.status end, cancelling = false,
            output = case when w.cancelling and f.status = 3 then null else f.output end, finished_at = holdfast.now()
        from (
            select owned[f.run] as id, f.* from unnest(places, runs, statuses, outputs, names)
                as f (place, run, status, output, name)
            order by owned[f.run] collate "C") f
        where w.id = f.id and w.status + 0 = 2
        returning f.place, f.name)
    select e.place, 8::smallint from ended e where e.name is not null;
end
$$;

-- Gives back what calls took whose callers were cancelled while the reply was on its way [M8].
create or replace function holdfast.commit_undos(owned text[], runs integer[], steps text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    update holdfast.messages m set consumed_by = null
    from unnest(runs, steps) as u (run, step)
    where m.workflow_id = owned[u.run] and m.consumed_by = u.step;
    delete from holdfast.steps s
    using unnest(runs, steps) as u (run, step)
    where s.workflow_id = owned[u.run] and s.step_id = u.step and s.kind in ('recv', 'first');
end
$$;
