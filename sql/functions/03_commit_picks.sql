-- Calls that wait for the first of several things: `first`, and recv on several topics. In the order of their places, one
-- after another, so that a message which one has taken is gone for the next [M7]. Called by commit_batch only.
-- A pick is answered from its row if that is complete, so that a repeated batch takes no second message. Otherwise the first
-- of its alternatives that is ready completes the row, in one commit with what it takes; the others are not touched. If none
-- is, the row is opened when there is a time to wait for [W9], and the answer is 10, amount = the seconds to the nearest.
-- choice: what was taken, counted over all alternatives from 0, each topic of a recv for itself; NULL with code 3 when the
-- pick's own time is over. note: the workflow that was awaited, or for which the event's value was encoded, or the request
-- that the message makes.
create or replace function holdfast.commit_picks(
    base bigint, owned text[], places integer[], runs integer[], steps text[], kinds text[], names text[],
    timeouts double precision[], wanteds text[], givens smallint[], codes smallint[], outputs bytea[], attempts smallint[]
) returns table (
    r_place integer, r_code smallint, r_payload bytea, r_note text, r_amount double precision, r_choice smallint)
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    pick record;
    recorded record;
    wanted record;
    ready record;
    moment timestamptz;
    begun timestamptz;
    own timestamptz;
    due timestamptz;
    nearest timestamptz;
    tries smallint;
    encoded_for text;
begin
    for pick in
        select p.*, owned[p.run] as workflow_id
        from unnest(places, runs, steps, kinds, names, timeouts, wanteds, givens, codes, outputs, attempts)
            as p (place, run, step, kind, name, timeout, wanted, given, code, output, attempts)
        where owned[p.run] is not null
        order by p.place
    loop
        select s.started_at, s.deadline, s.finished_at, s.outcome, s.output, s.target, s.origin, s.choice into recorded
        from holdfast.steps s where s.workflow_id = pick.workflow_id and s.step_id = pick.step;
        r_place := pick.place;
        r_code := recorded.outcome;
        r_payload := recorded.output;
        r_note := coalesce(recorded.origin, recorded.target);
        r_choice := recorded.choice;
        r_amount := null;
        if recorded.finished_at is not null then
            return next;
            continue;
        end if;
        moment := holdfast.now();
        begun := coalesce(recorded.started_at, moment);
        own := begun + make_interval(secs => pick.timeout);
        if pick.kind = 'recv' then
            own := coalesce(recorded.deadline, own);
        end if;
        nearest := own;
        tries := null;
        encoded_for := null;
        r_choice := 0;
        for wanted in
            select a.value ->> 'kind' as kind, a.value ->> 'target' as target, a.value -> 'names' as names,
                (a.value ->> 'timeout')::double precision as timeout, (a.value ->> 'after')::bigint as after,
                a.place - 1 as place
            from jsonb_array_elements(pick.wanted::jsonb) with ordinality as a (value, place)
        loop
            if wanted.place = pick.given then
                r_code := pick.code;
                r_payload := pick.output;
                r_note := wanted.target;
                tries := pick.attempts;
            else
                select l.code, l.payload, l.note, l.origin, l.topic, l.message into ready
                from holdfast.look_alternative(
                    pick.workflow_id, wanted.kind, wanted.target, wanted.names, wanted.after) l;
                r_code := ready.code;
                r_payload := ready.payload;
                r_note := ready.note;
                encoded_for := ready.origin;
                if ready.message is not null then
                    r_choice := r_choice + ready.topic;
                    update holdfast.messages m set consumed_by = pick.step where m.id = ready.message;
                end if;
            end if;
            if r_code is null then
                due := case when wanted.kind = 'sleep_until' then to_timestamp(wanted.timeout)
                    else begun + make_interval(secs => wanted.timeout) end;
                nearest := least(nearest, due);
                if due <= moment then
                    r_code := case when wanted.kind in ('sleep', 'sleep_until') then 0 else 3 end;
                    r_note := wanted.target;
                end if;
            end if;
            exit when r_code is not null;
            r_choice := r_choice + case when wanted.kind = 'recv' then jsonb_array_length(wanted.names) else 1 end;
        end loop;
        if r_code is null and own <= moment then
            r_code := 3;
            r_payload := null;
            r_note := null;
            r_choice := null;
        end if;
        if r_code is not null then
            insert into holdfast.steps as s (workflow_id, step_id, seq, kind, name, target, outcome, attempts, choice,
                output, origin, started_at, finished_at)
            values (pick.workflow_id, pick.step, base + pick.place, pick.kind, pick.name, r_note, r_code, tries, r_choice,
                r_payload, encoded_for, begun, moment)
            on conflict (workflow_id, step_id) do update
                set seq = excluded.seq, target = excluded.target, outcome = excluded.outcome, attempts = excluded.attempts,
                    choice = excluded.choice, output = excluded.output, origin = excluded.origin,
                    finished_at = excluded.finished_at;
        else
            if nearest is not null and recorded.started_at is null then
                insert into holdfast.steps (workflow_id, step_id, kind, name, deadline, started_at)
                values (pick.workflow_id, pick.step, pick.kind, pick.name, nearest, begun);
            end if;
            r_code := 10;
            r_choice := null;
            r_amount := extract(epoch from nearest - moment)::double precision;
        end if;
        r_note := coalesce(encoded_for, r_note);
        return next;
    end loop;
end
$$;

-- What there is for one alternative of a pick; code NULL: nothing yet. Of a recv, the oldest message of all its topics:
-- topic is the place of the message's among them, message its id.
create or replace function holdfast.look_alternative(
    workflow text, kind text, target text, names jsonb, after bigint,
    out code smallint, out payload bytea, out note text, out origin text, out topic integer, out message bigint
) language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    status smallint;
    closed timestamptz;
begin
    note := target;
    if kind = 'recv' then
        select found.id, found.payload, found.request, t.place - 1 into message, payload, note, topic
        from jsonb_array_elements_text(names) with ordinality as t (name, place)
        cross join lateral (
            select m.id, m.payload, m.request from holdfast.messages m
            where m.workflow_id = workflow and m.topic = t.name and m.consumed_by is null
            order by m.id limit 1) found
        order by found.id, t.place limit 1;
        code := case when message is not null then 0 end;
        return;
    end if;
    if kind not in ('run', 'result', 'get_event', 'watch_event', 'read_stream') then
        return;
    end if;
    -- How the other stands is looked at first: what it has written before its end is then there to be seen.
    select w.status, case when kind in ('run', 'result') and w.status > 2 then w.output end into status, payload
    from holdfast.workflows w where w.id = target;
    if kind in ('run', 'result') then
        code := case when status is null then 4 else (array[0, 1, 8, 9])[status - 2] end;
    elsif kind = 'get_event' then
        select e.payload, coalesce(e.origin, target) into payload, origin from holdfast.events e
        where e.workflow_id = target and e.key = names ->> 0 order by e.revision desc limit 1;
        code := case when payload is not null then 0 when status > 2 then 5 end;
    elsif kind = 'watch_event' then
        payload := holdfast.framed_event(target, names ->> 0, after);
        code := case when payload is not null then 0 when status > 2 then 5 end;
    elsif status is null then
        code := 4;
    else
        select s.closed_at into closed from holdfast.streams s where s.workflow_id = target and s.key = names ->> 0;
        payload := holdfast.recorded_values(target, names ->> 0, after);
        code := case when payload is not null then 0 when closed is not null then 7 when status > 2 then 5 end;
    end if;
end
$$;
