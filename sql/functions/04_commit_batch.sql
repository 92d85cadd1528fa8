-- The only write path of a running workflow, and of every send and start from outside: everything that has gathered in a
-- writer's lane, in one statement and one implicit transaction. It says only what its callers do not expect:
--   place < 0: this executor has lost the workflow run_id[-place]; nothing of it was written [W14]
--   place > 0: what became of that record: codes as in sql/README.md
-- Locks, in this order: the lane (so that a repeated batch waits for its first try), the fence of the executor (shared).
create or replace function holdfast.commit_batch(
    me integer, app_version text, channel text, lane bigint, again boolean, bells text[],
    run_id text[], run_epoch integer[],
    call_place integer[], call_run integer[], call_step text[], call_kind text[], call_name text[], call_target text[],
    call_outcome smallint[], call_output bytea[], call_attempts smallint[], call_elapsed double precision[],
    call_open boolean[],
    start_place integer[], start_run integer[], start_step text[], start_id text[], start_name text[], start_token uuid[],
    start_here boolean[], start_implied boolean[], start_input bytea[], start_timeout double precision[],
    start_attributes text[],
    send_place integer[], send_run integer[], send_step text[], send_to text[], send_topic text[], send_payload bytea[],
    send_token uuid[], send_key text[], send_request text[],
    set_place integer[], set_run integer[], set_step text[], set_key text[], set_payload bytea[], set_token uuid[],
    write_place integer[], write_run integer[], write_step text[], write_key text[], write_payload bytea[],
    write_attempt smallint[], write_token uuid[],
    close_place integer[], close_run integer[], close_step text[], close_key text[],
    undo_place integer[], undo_run integer[], undo_step text[],
    claim_place integer[], claim_run integer[], claim_step text[], claim_kind text[], claim_name text[], claim_target text[],
    claim_timeout double precision[], claim_given smallint[], claim_choice smallint[], claim_after bigint[],
    pick_place integer[], pick_run integer[], pick_step text[], pick_kind text[], pick_name text[],
    pick_timeout double precision[], pick_wanted text[],
    pick_given smallint[], pick_code smallint[], pick_output bytea[], pick_attempts smallint[],
    end_place integer[], end_run integer[], end_status smallint[], end_output bytea[], end_name text[], end_input bytea[]
) returns table (place integer, code smallint, payload bytea, note text, amount double precision, choice smallint)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
as
$$
#variable_conflict use_variable
declare
    base bigint;
    owned text[] := '{}';
    done integer[] := '{}';
    alive boolean := false;
    refused record;
begin
    perform pg_advisory_xact_lock(lane);
    base := nextval('holdfast.batches') * 8192;
    if me is not null and (cardinality(run_id) > 0 or true = any (start_here)) then
        perform pg_advisory_xact_lock_shared(hashtext('holdfast.fence'), me);
        alive := exists (select from holdfast.executors e where e.id = me and e.fenced_at is null);
    end if;
    if cardinality(run_id) > 0 then
        owned := holdfast.owned_runs(me, alive, run_id, run_epoch);
        return query
        select -lost.place::integer, 12::smallint, null::bytea, null::text, null::double precision, null::smallint
        from unnest(owned) with ordinality as lost (id, place) where lost.id is null;
    end if;
    if again then
        done := holdfast.committed_places(owned, call_place, call_run, call_step, send_place, send_to, send_token,
            set_place, set_run, set_key, set_token, write_place, write_run, write_key, write_token);
        return query
        select r.place, s.outcome, s.output, null::text, null::double precision, null::smallint
        from unnest(call_place, call_run, call_step) as r (place, run, step)
        cross join lateral (
            select s.outcome, s.output from holdfast.steps s
            where s.workflow_id = owned[r.run] and s.step_id = r.step and s.finished_at is not null limit 1) s;
    end if;
    if cardinality(start_place) > 0 then
        for refused in select * from holdfast.commit_starts(
            me, alive, owned, done, start_place, start_run, start_step, start_id, start_name, start_token, start_here,
            start_implied, start_input, start_timeout, start_attributes, app_version)
        loop
            place := refused.r_place; code := refused.r_code; note := refused.r_note; return next;
            if code = 12 then
                perform holdfast.ring(channel, array[
                    holdfast.wake_key('work', start_name[array_position(start_place, place)], '')]);
            end if;
            if code = 6 and array_position(call_place, place) is not null then
                call_outcome[array_position(call_place, place)] := 6;
                call_open[array_position(call_place, place)] := false;
            end if;
        end loop;
        note := null;
        if again then
            -- Who is to run it: only who created it, as long as it is as it was created.
            return query
            select s.place, 11::smallint, null::bytea, null::text, null::double precision, null::smallint
            from unnest(start_place, start_run, start_step, start_id, start_token, start_here)
                as s (place, run, step, id, token, here)
            cross join lateral (
                select w.start_token, w.executor_id, w.epoch, w.status from holdfast.workflows w where w.id = s.id limit 1) w
            where s.here and (w.start_token <> s.token or w.executor_id is distinct from me or w.epoch <> 1 or w.status <> 2)
                and (w.start_token = s.token or s.place = any (done) and not exists (
                    select from holdfast.steps c
                    where c.workflow_id = owned[s.run] and c.step_id = s.step and c.outcome = 6));
        end if;
    end if;
    if cardinality(send_place) > 0 then
        for refused in select * from holdfast.commit_sends(
            owned, done, send_place, send_run, send_step, send_to, send_topic, send_payload, send_token, send_key,
            send_request)
        loop
            place := refused.r_place; code := refused.r_code; return next;
            if array_position(call_place, place) is not null then
                call_outcome[array_position(call_place, place)] := code;
                call_open[array_position(call_place, place)] := false;
            end if;
        end loop;
    end if;
    if cardinality(set_place) > 0 then
        perform holdfast.commit_events(owned, done, set_place, set_run, set_step, set_key, set_payload, set_token);
    end if;
    if cardinality(write_place) > 0 then
        for refused in select * from holdfast.commit_writes(owned, done, write_place, write_run, write_step, write_key,
            write_payload, write_attempt, write_token, close_place, close_run, close_key)
        loop
            place := refused.r_place; code := refused.r_code; return next;
            if array_position(call_place, place) is not null then
                call_outcome[array_position(call_place, place)] := code;
            end if;
        end loop;
    end if;
    if cardinality(close_place) > 0 then
        perform holdfast.commit_closes(owned, done, close_place, close_run, close_step, close_key);
    end if;
    if cardinality(undo_run) > 0 then
        perform holdfast.commit_undos(owned, undo_run, undo_step);
    end if;
    if cardinality(claim_place) > 0 then
        return query
        select c.r_place, c.r_code, c.r_payload, c.r_note, c.r_amount, null::smallint
        from holdfast.commit_claims(
            base, owned, claim_place, claim_run, claim_step, claim_kind, claim_name, claim_target, claim_timeout,
            claim_given, claim_choice, claim_after) c;
    end if;
    if cardinality(pick_place) > 0 then
        return query
        select p.r_place, p.r_code, p.r_payload, p.r_note, p.r_amount, p.r_choice
        from holdfast.commit_picks(
            base, owned, pick_place, pick_run, pick_step, pick_kind, pick_name, pick_timeout, pick_wanted,
            pick_given, pick_code, pick_output, pick_attempts) p;
    end if;
    if cardinality(call_place) > 0 then
        insert into holdfast.steps (workflow_id, step_id, seq, kind, name, target, outcome, attempts, output,
            started_at, finished_at)
        select owned[r.run], r.step, case when not r.open then base + r.place end, r.kind, r.name, r.target,
            case when not r.open then r.outcome end, r.attempts, r.output,
            holdfast.now() - make_interval(secs => r.elapsed), case when not r.open then holdfast.now() end
        from unnest(call_place, call_run, call_step, call_kind, call_name, call_target, call_outcome, call_output,
                call_attempts, call_elapsed, call_open)
            as r (place, run, step, kind, name, target, outcome, output, attempts, elapsed, open)
        where owned[r.run] is not null and r.place <> all (done);
    end if;
    if cardinality(end_place) > 0 then
        return query
        select e.r_place, e.r_code, null::bytea, null::text, null::double precision, null::smallint
        from holdfast.commit_ends(owned, channel, end_place, end_run, end_status, end_output, end_name, end_input) e;
    end if;
    perform pg_notify(channel, bell) from unnest(bells) as bell;
end
$$;

-- The workflows of a batch that this executor may write, NULL in the place of each that it has lost.
create or replace function holdfast.owned_runs(me integer, alive boolean, run_id text[], run_epoch integer[]) returns text[]
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    if not alive then
        return array_fill(null::text, array[cardinality(run_id)]);
    end if;
    return (
        select array_agg(w.id order by r.place)
        from unnest(run_id, run_epoch) with ordinality as r (id, epoch, place)
        left join lateral (
            select case when w.executor_id = me and w.epoch = r.epoch and w.status = 2 then w.id end as id
            from holdfast.workflows w where w.id = r.id limit 1) w on true);
end
$$;

-- The places of a repeated batch that its first try committed: by journal row, or by the token made before the first try.
create or replace function holdfast.committed_places(
    owned text[], call_place integer[], call_run integer[], call_step text[],
    send_place integer[], send_to text[], send_token uuid[],
    set_place integer[], set_run integer[], set_key text[], set_token uuid[],
    write_place integer[], write_run integer[], write_key text[], write_token uuid[]
) returns integer[]
language sql volatile set search_path = pg_catalog, pg_temp as
$$
    select coalesce(array_agg(place), '{}') from (
        select r.place from unnest(call_place, call_run, call_step) as r (place, run, step)
        where exists (select from holdfast.steps s where s.workflow_id = owned[r.run] and s.step_id = r.step)
        union all
        select m.place from unnest(send_place, send_to, send_token) as m (place, destination, token)
        where exists (select from holdfast.messages s where s.workflow_id = m.destination and s.token = m.token)
        union all
        select e.place from unnest(set_place, set_run, set_key, set_token) as e (place, run, key, token)
        where exists (
            select from holdfast.events s where s.workflow_id = owned[e.run] and s.key = e.key and s.token = e.token)
        union all
        select v.place from unnest(write_place, write_run, write_key, write_token) as v (place, run, key, token)
        where exists (
            select from holdfast.stream_values s
            where s.workflow_id = owned[v.run] and s.key = v.key and s.token = v.token)
    ) as committed
$$;
