-- What users call, from psql, triggers and any language. In the caller's transaction: nothing is seen before it commits,
-- nothing is left if it rolls back, and its commit wakes the waiters in every process. Errors, by their SQLSTATE:
--   22023 invalid_parameter_value          a name, an id or an option that cannot be one [K1]
--   54000 program_limit_exceeded           a payload larger than 16 MiB [K2]
--   P0002 no_data_found                    there is no workflow of this id [M2, S5]
--   55000 object_not_in_prerequisite_state the workflow has ended [M2], or values of the stream are no longer kept
--   23505 unique_violation                 the id belongs to another workflow, or exists
--   0A000 feature_not_supported            the stored value cannot be jsonb: a payload codec is in use [K3]

-- Starts a workflow and gives its id; a runtime that knows the name takes it. input: an object is keyword arguments, an
-- array positional ones. id: the idempotency key; the same id and name again attaches, NULL makes a new one [W1].
-- attributes: an object. timeout: seconds that the workflow may take. on_existing: 'attach', or 'raise' if the id must be
-- new.
create or replace function holdfast.start(
    name text, input jsonb default '[]', id text default null, attributes jsonb default null,
    timeout double precision default null, on_existing text default 'attach'
) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    workflow text := coalesce(start.id, holdfast.new_workflow_id());
    answer record;
begin
    perform holdfast.check_name('workflow name', start.name, 256);
    perform holdfast.check_name('workflow id', workflow, 512);
    perform holdfast.check_option('input must be a JSON object (keyword arguments) or array (positional ones)',
        jsonb_typeof(coalesce(start.input, '[]')) in ('object', 'array'));
    perform holdfast.check_option('in input, the key * holds positional arguments: an array',
        jsonb_typeof(start.input) <> 'object' or (jsonb_typeof(start.input -> '*') <> 'array') is not true);
    perform holdfast.check_option('attributes must be a JSON object', jsonb_typeof(start.attributes) = 'object');
    perform holdfast.check_option('timeout must be a number of seconds from 0 to a hundred years',
        start.timeout between 0 and 3162240000);
    perform holdfast.check_option(
        'on_existing is ''attach'' or ''raise''', coalesce(on_existing, '') in ('attach', 'raise'));
    select i.code, i.note into answer from holdfast.intend_start(workflow, start.name,
        holdfast.as_payload(coalesce(start.input, '[]')), start.timeout, start.attributes::text, null,
        on_existing = 'raise') i;
    if answer.code = 6 or (answer.code = 11 and on_existing = 'raise') then
        perform holdfast.refuse_start(workflow, start.name, answer.note);
    end if;
    return workflow;
end
$$;

-- Sends a message: exactly once if this transaction commits. topic: NULL for none. message: NULL is JSON's null. key: a
-- second message of this key to this workflow is dropped silently [M3]. It goes with a workflow that is deleted before the
-- commit.
create or replace function holdfast.send(workflow_id text, topic text, message jsonb, key text default null) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    code smallint;
begin
    perform holdfast.check_name('workflow id', send.workflow_id, 512);
    if send.topic is not null then
        perform holdfast.check_name('topic', send.topic, 256);
    end if;
    if send.key is not null then
        perform holdfast.check_name('key', send.key, 256);
    end if;
    code := holdfast.intend_send(send.workflow_id, coalesce(send.topic, ''), holdfast.as_payload(message), send.key);
    if code = 4 then
        perform holdfast.refuse_unknown(send.workflow_id);
    elsif code = 5 then
        raise exception 'workflow % has ended', quote_literal(send.workflow_id)
            using errcode = 'object_not_in_prerequisite_state';
    end if;
end
$$;

-- The latest value of an event; NULL when it is not set, by whomever [E1].
create or replace function holdfast.get_event(workflow_id text, key text) returns jsonb
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as
$$
begin
    perform holdfast.check_name('workflow id', get_event.workflow_id, 512);
    perform holdfast.check_name('event key', get_event.key, 256);
    return (
        select holdfast.as_json(e.payload) from holdfast.events e
        where e.workflow_id = get_event.workflow_id and e.key = get_event.key
        order by e.revision desc limit 1);
end
$$;

-- The values of a stream behind offset after, from its beginning if that is NULL, at most so many: what is there now [S6].
create or replace function holdfast.read_stream(
    workflow_id text, key text, after bigint default null, max_values integer default 1000
) returns table ("offset" bigint, value jsonb)
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off as
$$
declare
    oldest bigint;
begin
    perform holdfast.check_name('workflow id', read_stream.workflow_id, 512);
    perform holdfast.check_name('stream', read_stream.key, 256);
    perform holdfast.check_option('max_values must not be negative', max_values >= 0);
    if holdfast.intended_status(read_stream.workflow_id) is null then
        perform holdfast.refuse_unknown(read_stream.workflow_id);
    end if;
    oldest := (
        select s.oldest from holdfast.streams s
        where s.workflow_id = read_stream.workflow_id and s.key = read_stream.key limit 1);
    if after + 1 < oldest then
        raise exception 'values of this stream before offset % are no longer kept', oldest
            using errcode = 'object_not_in_prerequisite_state';
    end if;
    return query
    select v."offset", holdfast.as_json(v.payload) from holdfast.stream_values v
    where v.workflow_id = read_stream.workflow_id and v.key = read_stream.key and v."offset" > coalesce(after, -1)
    order by v."offset" limit max_values;
end
$$;

-- Asks a workflow and its children to end [W10]; was it active?
create or replace function holdfast.cancel(workflow_id text) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
declare
    active boolean;
begin
    perform holdfast.check_name('workflow id', cancel.workflow_id, 512);
    active := holdfast.intend_cancel(cancel.workflow_id);
    if active is null then
        perform holdfast.refuse_unknown(cancel.workflow_id);
    end if;
    return active;
end
$$;

-- Refuses what cannot be an id or a name, as _keys does in Python [K1]. PostgreSQL's text holds no NUL and no lone
-- surrogate.
create or replace function holdfast.check_name(what text, value text, most integer) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as
$$
begin
    if value is null or value = '' then
        raise exception '% must not be empty', what using errcode = 'invalid_parameter_value';
    end if;
    if octet_length(convert_to(value, 'UTF8')) > most then
        raise exception '% takes % bytes of UTF-8, more than %', what, octet_length(convert_to(value, 'UTF8')), most
            using errcode = 'invalid_parameter_value';
    end if;
end
$$;

-- Refuses an option that does not fit; one that was not given, so that nothing can be said of it, fits.
create or replace function holdfast.check_option(complaint text, fits boolean) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as
$$
begin
    if not fits then
        raise exception '%', complaint using errcode = 'invalid_parameter_value';
    end if;
end
$$;

-- The error of a workflow that does not exist.
create or replace function holdfast.refuse_unknown(workflow text) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp as
$$
begin
    raise exception 'there is no workflow %', quote_literal(workflow) using errcode = 'no_data_found';
end
$$;

-- jsonb as it is stored: its text in UTF-8. NULL is JSON's null.
create or replace function holdfast.as_payload(value jsonb) returns bytea
language plpgsql immutable set search_path = pg_catalog, pg_temp as
$$
declare
    payload bytea := convert_to(coalesce(value::text, 'null'), 'UTF8');
begin
    if octet_length(payload) > 16777216 then
        raise exception 'a payload of % bytes is larger than 16 MiB', octet_length(payload)
            using errcode = 'program_limit_exceeded';
    end if;
    return payload;
end
$$;

-- What is stored as jsonb; says what is the matter if that cannot be, and shows nothing of it [K4].
create or replace function holdfast.as_json(payload bytea) returns jsonb
language plpgsql immutable strict set search_path = pg_catalog, pg_temp as
$$
begin
    return convert_from(payload, 'UTF8')::jsonb;
exception
    when untranslatable_character then
        raise exception 'the stored value holds a character that jsonb cannot hold, such as \u0000; read it from Python'
            using errcode = 'feature_not_supported';
    when character_not_in_repertoire or invalid_text_representation then
        raise exception 'the stored value is not JSON: Settings.codec is in use; read it from Python'
            using errcode = 'feature_not_supported';
end
$$;
