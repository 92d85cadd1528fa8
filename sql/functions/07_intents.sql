-- Starting, sending and cancelling inside somebody else's transaction: `conn=` in Python, and the functions of 08_public for
-- any language. What is asked for is noted and checked at once, and done when the transaction commits, by a deferred
-- trigger: so an open transaction holds no id, no key and no row of a workflow that a batch, a claim or a take-over would
-- have to wait for, however long it stays open, and one that rolls back leaves nothing behind that nobody has been told of.

-- Notes that a workflow is to begin. Says 0, or, with nothing noted, 6: the id belongs to another workflow, 11: it exists
-- already; note = the name it has.
create or replace function holdfast.intend_start(
    workflow text, definition text, input bytea, seconds double precision, labels text, version text, strict boolean
) returns table (code smallint, note text)
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as
$$
begin
    note := (select w.name from holdfast.workflows w where w.id = workflow limit 1);
    if note is null then
        note := (
            select i.name from holdfast.intents i
            where i.transaction = pg_current_xact_id() and i.workflow_id = workflow and i.kind = 'start'
            order by i.place limit 1);
    end if;
    code := case when note is null then 0 when note <> definition then 6 else 11 end;
    if code = 0 then
        insert into holdfast.intents (workflow_id, kind, name, payload, attributes, timeout, app_version, strict)
        values (workflow, 'start', definition, input, labels::jsonb, seconds, version, intend_start.strict);
    end if;
    return next;
end
$$;

-- Notes that a message is to be sent. Says 0, or, with nothing noted, 4: no such workflow, 5: it has ended [M2].
create or replace function holdfast.intend_send(destination text, topic text, message bytea, key text) returns smallint
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as
$$
declare
    status smallint := holdfast.intended_status(destination);
begin
    if status is null then
        return 4;
    end if;
    if status in (3, 4) then
        -- The message of a key that is taken has been accepted, and is dropped silently, after the end too [M3].
        return case when key is not null and exists (
            select from holdfast.messages m where m.workflow_id = destination and m.dedup_key = key) then 0 else 5 end;
    end if;
    insert into holdfast.intents (workflow_id, kind, name, payload, dedup_key)
    values (destination, 'send', topic, message, key);
    return 0;
end
$$;

-- Notes that a workflow is to be cancelled. Is it active? NULL: there is none of this id.
create or replace function holdfast.intend_cancel(workflow text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as
$$
declare
    status smallint := holdfast.intended_status(workflow);
begin
    if status < 3 then
        insert into holdfast.intents (workflow_id, kind) values (workflow, 'cancel');
    end if;
    return status < 3;
end
$$;

-- The status of a workflow as this transaction sees it; ENQUEUED if it is to begin when this commits, NULL if there is none.
create or replace function holdfast.intended_status(workflow text) returns smallint
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as
$$
begin
    return coalesce(
        (select w.status from holdfast.workflows w where w.id = workflow limit 1),
        (select 0 from holdfast.intents i
         where i.transaction = pg_current_xact_id_if_assigned() and i.workflow_id = workflow and i.kind = 'start'
         order by i.place limit 1));
end
$$;

-- Does all that this transaction has noted, as it commits: the first row's turn does it for all of them. In order of id, as
-- batches do, so that neither waits for the other. What was found fit when it was noted is not judged again, but for an id
-- that another transaction has taken since: that ends this one. A message to what has been deleted since has gone with it.
create or replace function holdfast.settle_intents() returns trigger
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as
$$
declare
    taken record;
begin
    if not exists (
        select from holdfast.intents i
        where i.transaction = new.transaction and i.workflow_id = new.workflow_id and i.place = new.place)
    then
        return null;
    end if;
    insert into holdfast.workflows (id, name, status, start_token, app_version, attributes, input, timeout, created_at)
    select i.workflow_id, i.name, 0, i.token, i.app_version, i.attributes, i.payload, i.timeout, holdfast.now()
    from holdfast.intents i where i.transaction = new.transaction and i.kind = 'start'
    order by i.workflow_id
    on conflict do nothing;
    select i.workflow_id as id, i.name as wanted, w.name as existing into taken
    from holdfast.intents i
    cross join lateral (
        select w.name, w.start_token from holdfast.workflows w where w.id = i.workflow_id limit 1) w
    where i.transaction = new.transaction and i.kind = 'start' and w.start_token <> i.token
        and (w.name <> i.name or i.strict)
    limit 1;
    if taken.id is not null then
        perform holdfast.refuse_start(taken.id, taken.wanted, taken.existing);
    end if;
    insert into holdfast.messages (workflow_id, topic, payload, dedup_key, created_at)
    select i.workflow_id, i.name, i.payload, i.dedup_key, holdfast.now()
    from (
        select i.* from holdfast.intents i where i.transaction = new.transaction and i.kind = 'send'
        order by i.workflow_id, i.place) i
    cross join lateral (select w.status from holdfast.workflows w where w.id = i.workflow_id limit 1) w
    left join lateral (
        select true as there from holdfast.workflows e where e.id = i.workflow_id and w.status > 2 limit 1 for key share) held
        on true
    where w.status <= 2 or held.there
    order by i.workflow_id, i.place
    on conflict (workflow_id, dedup_key) where dedup_key is not null do nothing;
    perform holdfast.ring(holdfast.channel(), array_agg(distinct
        case i.kind when 'start' then holdfast.wake_key('work', i.name, '')
            else holdfast.wake_key('message', i.workflow_id, i.name) end))
    from holdfast.intents i where i.transaction = new.transaction and i.kind in ('start', 'send');
    perform holdfast.cancel_workflows(array_agg(i.workflow_id), null, holdfast.channel())
    from holdfast.intents i where i.transaction = new.transaction and i.kind = 'cancel'
    having count(*) > 0;
    delete from holdfast.intents i where i.transaction = new.transaction;
    return null;
end
$$;

-- The error of a start whose id is taken.
create or replace function holdfast.refuse_start(workflow text, wanted text, existing text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as
$$
begin
    if existing = wanted then
        raise exception 'workflow % exists already', quote_literal(workflow) using errcode = 'unique_violation';
    end if;
    raise exception 'workflow % exists, and is a %, not a %',
        quote_literal(workflow), quote_literal(existing), quote_literal(wanted) using errcode = 'unique_violation';
end
$$;
