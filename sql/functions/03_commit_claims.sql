-- Calls that take or wait: recv, get_event, ask (name is the key of the reply here, and the topic in its row), run and
-- result (of another workflow), sleep, sleep_until, read_stream and watch_event (what lies behind `after`). Each either
-- completes its journal row together with what it takes, or has its deadline recorded and is told how long is left [W9,
-- M4, M6].
-- Says of every claim: its outcome (0 value, 1 error, 3 timeout, 4 not found, 5 finished, 7 closed, 8 cancelled,
-- 9 quarantined) or
-- what was given: 2 interrupted [W10] or 13 expired, over whatever was recorded (the caller never saw it), or
-- 10: wait, amount = the seconds left or NULL for ever. Of a message, note = the request that it makes; of an event, the
-- workflow for which its value was encoded, which is not its own where that is a fork.
-- A `timeout` is the deadline of a block: it is only kept, and its answer is always 10.
-- The k-th waiting recv of a mailbox gets the k-th message, in the order of the calls [M7]; a claim whose row is complete
-- is answered from the row, so that a repeated batch takes no second message.
create or replace function holdfast.commit_claims(
    base bigint, owned text[], places integer[], runs integer[], steps text[], kinds text[], names text[], targets text[],
    timeouts double precision[], givens smallint[], choices smallint[], afters bigint[]
) returns table (r_place integer, r_code smallint, r_payload bytea, r_note text, r_amount double precision)
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    return query
    with asked as materialized (
        select c.*, owned[c.run] as workflow_id, s.finished_at is not null and c.given is null as already,
            s.outcome as recorded, s.output,
            s.deadline, case when c.kind = 'get_event' then s.origin else s.target end as noted,
            row_number() over (
                partition by c.run, c.kind, c.name, s.finished_at is null and c.given is null order by c.place) as rank
        from unnest(places, runs, steps, kinds, names, targets, timeouts, givens, choices, afters)
            as c (place, run, step, kind, name, target, timeout, given, choice, after)
        left join lateral (
            select s.finished_at, s.outcome, s.output, s.deadline, s.target, s.origin from holdfast.steps s
            where s.workflow_id = owned[c.run] and s.step_id = c.step limit 1) s on true
        where owned[c.run] is not null),
    found as materialized (
        select a.*, t.moment, m.id as message, m.request, coalesce(m.payload, e.payload, w.output, r.batch) as payload,
            case when a.kind = 'get_event' and e.payload is not null then coalesce(e.origin, a.target) end as origin,
            (case
                when a.given is not null then a.given
                when a.kind = 'recv' then case when m.id is not null then 0 end
                when a.kind = 'get_event' then case when e.payload is not null then 0 when w.status > 2 then 5 end
                when a.kind = 'watch_event' then case when r.batch is not null then 0 when w.status > 2 then 5 end
                when a.kind = 'read_stream' then
                    case when w.status is null then 4 when r.batch is not null and a.after >= -1 then 0 when r.closed then 7
                        when w.status > 2 then 5 when r.batch is not null then 0 end
                when a.kind = 'ask' then case
                        when e.payload is not null then 0 when w.status is null then 4 when w.status > 2 then 5 end
                when a.kind in ('run', 'result') then
                    case when w.status is null then 4 else (array[0, 1, 8, 9])[w.status - 2] end
            end)::smallint as outcome,
            coalesce(a.deadline, case when a.kind = 'sleep_until' then to_timestamp(a.timeout)
                else t.moment + make_interval(secs => a.timeout) end) as due
        from asked a
        cross join lateral (select holdfast.now() as moment offset 0) t
        left join lateral (
            select m.id, m.payload, m.request from holdfast.messages m
            where m.workflow_id = a.workflow_id and m.topic = a.name and m.consumed_by is null
            order by m.id offset a.rank - 1 limit 1) m on a.kind = 'recv' and not a.already and a.given is null
        left join lateral (
            select e.payload, e.origin from holdfast.events e where e.workflow_id = a.target and e.key = a.name
            order by e.revision desc limit 1) e on a.kind in ('get_event', 'ask') and not a.already and a.given is null
        left join lateral (
            select w.status, case when a.kind in ('run', 'result') and w.status > 2 then w.output end as output
            from holdfast.workflows w where w.id = a.target limit 1) w
            on a.kind in ('get_event', 'ask', 'run', 'result', 'read_stream', 'watch_event') and not a.already
                and a.given is null
        left join lateral (
            select case when a.kind = 'read_stream' then holdfast.recorded_values(a.target, a.name, a.after)
                    else holdfast.framed_event(a.target, a.name, a.after) end as batch,
                (select s.closed_at is not null from holdfast.streams s
                    where a.kind = 'read_stream' and s.workflow_id = a.target and s.key = a.name limit 1) as closed
            offset 0) r
            on a.kind in ('read_stream', 'watch_event') and not a.already and a.given is null),
    decided as materialized (
        select f.*, case when f.already then f.recorded else coalesce(f.outcome,
            (case when f.due <= f.moment and f.kind <> 'timeout'
                then case when f.kind in ('sleep', 'sleep_until') then 0 else 3 end end)::smallint)
            end as code
        from found f),
    taken as (
        update holdfast.messages m set consumed_by = d.step
        from decided d
        where m.id = d.message),
    written as (
        insert into holdfast.steps as s (workflow_id, step_id, seq, kind, name, target, outcome, choice, output, origin,
            deadline, started_at, finished_at)
        select d.workflow_id, d.step, case when d.code is not null then base + d.place end, d.kind, d.name,
            coalesce(d.target, d.request), d.code, d.choice, d.payload, d.origin, d.due, d.moment,
            case when d.code is not null then d.moment end
        from decided d
        where not d.already and (d.code is not null or (d.due is not null and d.deadline is null))
        on conflict (workflow_id, step_id) do update
            set seq = excluded.seq, outcome = excluded.outcome,
                -- What an interruption lies over has had its effect: a resume must not have it twice.
                covered = case when excluded.outcome = 2 then coalesce(s.covered, nullif(s.outcome, 2)) end,
                choice = case when excluded.outcome = 2 then s.choice else excluded.choice end,
                output = case when excluded.outcome = 2 then s.output else excluded.output end,
                origin = case when excluded.outcome = 2 then s.origin else excluded.origin end,
                target = coalesce(s.target, excluded.target),
                deadline = coalesce(s.deadline, excluded.deadline), finished_at = excluded.finished_at
            where s.finished_at is null or excluded.outcome in (2, 13))
    select d.place, coalesce(d.code, 10::smallint), case when d.already then d.output else d.payload end,
        case when d.already then d.noted else coalesce(d.request, d.origin) end,
        case when d.code is null then extract(epoch from d.due - d.moment)::double precision end
    from decided d;
end
$$;
