-- What a workflow reads of streams and events in one recorded call: many values in one payload, each framed as
-- int8send(offset) || int2send(attempt) || int4send(length) || payload, in order. NULL: nothing behind `after`.

-- The values of a stream behind an offset: at most so many, and no more after so many bytes [S8].
create or replace function holdfast.framed_values(workflow text, key text, after bigint, most integer, most_bytes integer)
returns bytea
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    return (
        select string_agg(int8send(f."offset") || int2send(f.attempt) || int4send(octet_length(f.payload)) || f.payload, ''::bytea
            order by f."offset")
        from (
            select v."offset", v.attempt, v.payload,
                sum(octet_length(v.payload)) over (order by v."offset") - octet_length(v.payload) as before
            from (
                select s."offset", s.attempt, s.payload from holdfast.stream_values s
                where s.workflow_id = framed_values.workflow and s.key = framed_values.key and s."offset" > framed_values.after
                order by s."offset" limit framed_values.most) v) f
        where f.before < framed_values.most_bytes);
end
$$;

-- The latest value of an event, if it is newer than a revision: its offset is the revision, its attempt 0 [E5].
create or replace function holdfast.framed_event(workflow text, key text, after bigint) returns bytea
language plpgsql volatile set search_path = pg_catalog, pg_temp as
$$
begin
    return (
        select int8send(e.revision) || int2send(0::smallint) || int4send(octet_length(e.payload)) || e.payload
        from holdfast.events e
        where e.workflow_id = framed_event.workflow and e.key = framed_event.key and e.revision > framed_event.after
        order by e.revision desc limit 1);
end
$$;
