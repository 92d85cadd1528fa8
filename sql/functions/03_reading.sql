-- What workflow code reads of streams and events, as its journal keeps it: so that a replay needs none of the tables read.
-- A value is framed: offset (8 bytes), attempt (2), length of the origin (2) and of the payload (4), origin, payload; of an
-- event the offset is the revision and the attempt 0; the origin is empty unless the value was encoded for another
-- workflow. NULL: there is nothing. They are called under the plan settings of commit_batch.

create or replace function holdfast.framed("offset" bigint, attempt smallint, origin text, payload bytea) returns bytea
language sql immutable set search_path = pg_catalog, pg_temp as
$$
    select int8send("offset") || int2send(attempt)
        || int2send(coalesce(octet_length(convert_to(origin, 'UTF8')), 0)::smallint)
        || int4send(octet_length(payload)) || coalesce(convert_to(origin, 'UTF8'), '') || payload
$$;

-- The values of a stream behind an offset: at most so many, and about so many bytes, but at least one.
create or replace function holdfast.framed_values(workflow text, key text, after bigint, most integer, most_bytes integer)
returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as
$$
begin
    return (
        select string_agg(
            holdfast.framed(t."offset", t.attempt, t.origin, t.payload), ''::bytea
            order by t."offset")
        from (
            select b."offset", b.payload, b.origin, b.attempt, sum(octet_length(b.payload)) over (
                order by b."offset" rows between unbounded preceding and 1 preceding) as before
            from (
                select v."offset", v.payload, v.origin, v.attempt from holdfast.stream_values v
                where v.workflow_id = framed_values.workflow and v.key = framed_values.key
                    and v."offset" > framed_values.after
                order by v."offset" limit framed_values.most) b) t
        where t.before is null or t.before < framed_values.most_bytes);
end
$$;

-- The latest value of an event, if its revision is newer.
create or replace function holdfast.framed_event(workflow text, key text, after bigint) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as
$$
begin
    return (
        select holdfast.framed(e.revision, 0::smallint, e.origin, e.payload)
        from holdfast.events e
        where e.workflow_id = framed_event.workflow and e.key = framed_event.key and e.revision > framed_event.after
        order by e.revision desc limit 1);
end
$$;

-- What one read_stream of workflow code records. after: behind that offset; -1 from the oldest value that is kept. Three
-- shapes, told apart by their lengths: framed values; 8 bytes, the oldest offset, where the one asked for has been trimmed;
-- 16 bytes, the offset behind which to begin and the length of the stream, where after = -2 - k asks for the last k.
create or replace function holdfast.recorded_values(workflow text, stream text, after bigint) returns bytea
language plpgsql stable set search_path = pg_catalog, pg_temp as
$$
declare
    oldest bigint := coalesce((
        select s.oldest from holdfast.streams s where s.workflow_id = workflow and s.key = stream limit 1), 0);
    length bigint;
begin
    if after < -1 then
        length := greatest(oldest, (
            select v."offset" + 1 from holdfast.stream_values v where v.workflow_id = workflow and v.key = stream
            order by v."offset" desc limit 1));
        return int8send(greatest(length + after + 2, oldest) - 1) || int8send(length);
    end if;
    if after >= 0 and after + 1 < oldest then
        return int8send(oldest);
    end if;
    return holdfast.framed_values(workflow, stream, greatest(after, oldest - 1), 500, 1048576);
end
$$;
