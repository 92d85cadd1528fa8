-- Batched look-ups: what woken waiters outside workflows ask, many at once in one statement. They write nothing.
-- The plan settings are commit_batch's, for the same reason.

-- How workflows stand: those that do not exist (status NULL) and those that have ended; nothing of the others.
create or replace function holdfast.look_results(ids text[])
returns table (place integer, status smallint, output bytea, name text)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as
$$
begin
    return query
    select a.place::integer, w.status, w.output, w.name
    from unnest(ids) with ordinality as a (id, place)
    left join lateral (
        select w.status, case when w.status > 2 then w.output end as output, w.name
        from holdfast.workflows w where w.id = a.id limit 1) w on true
    where w.status is null or w.status > 2;
end
$$;

-- The latest value of each event that is newer than the given revision, and the workflow's status (NULL: no such workflow).
-- Nothing of a key that has no newer value while its workflow is active or not there yet.
create or replace function holdfast.look_events(ids text[], keys text[], afters integer[])
returns table (place integer, revision integer, payload bytea, origin text, status smallint)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as
$$
begin
    return query
    select a.place::integer, e.revision, e.payload, e.origin, w.status
    from unnest(ids, keys, afters) with ordinality as a (id, key, after, place)
    left join lateral (
        select e.revision, e.payload, e.origin from holdfast.events e
        where e.workflow_id = a.id and e.key = a.key and e.revision > a.after
        order by e.revision desc limit 1) e on true
    left join lateral (select w.status from holdfast.workflows w where w.id = a.id limit 1) w on true
    where e.revision is not null or w.status > 2;
end
$$;

-- The values of streams behind an offset, or the last so many, with what the stream has come to in the same snapshot: of
-- each at most so many values and about so many bytes, but at least one. A row without an offset says that there is nothing
-- (more) to read: closed, or the workflow's status (NULL: unknown). Values before `oldest` have been trimmed; `length`
-- counts them.
create or replace function holdfast.look_streams(
    ids text[], keys text[], afters bigint[], lasts bigint[], most integer, most_bytes integer)
returns table (place integer, "offset" bigint, payload bytea, origin text, attempt smallint, closed boolean, status smallint,
    oldest bigint, length bigint)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as
$$
begin
    return query
    select a.place::integer, v."offset", v.payload, v.origin, v.attempt, c.closed is not null, w.status, p.oldest, p.length
    from unnest(ids, keys, afters, lasts) with ordinality as a (id, key, after, last, place)
    left join lateral (
        select s.closed_at as closed, s.oldest from holdfast.streams s
        where s.workflow_id = a.id and s.key = a.key limit 1) c on true
    left join lateral (select w.status from holdfast.workflows w where w.id = a.id limit 1) w on true
    left join lateral (
        select n."offset" from holdfast.stream_values n where n.workflow_id = a.id and n.key = a.key
        order by n."offset" desc limit 1) n on true
    cross join lateral (
        select coalesce(c.oldest, 0) as oldest, greatest(n."offset" + 1, c.oldest, 0) as length offset 0) p
    left join lateral (
        select t."offset", t.payload, t.origin, t.attempt
        from (
            select b."offset", b.payload, b.origin, b.attempt, sum(octet_length(b.payload)) over (
                order by b."offset" rows between unbounded preceding and 1 preceding) as before
            from (
                select v."offset", v.payload, v.origin, v.attempt from holdfast.stream_values v
                where v.workflow_id = a.id and v.key = a.key and v."offset" >
                    greatest(case when a.last is null then a.after else p.length - a.last - 1 end, p.oldest - 1)
                order by v."offset" limit most) b) t
        where t.before is null or t.before < most_bytes) v on true
    where v."offset" is not null or c.closed is not null or w.status is null or w.status > 2 or a.last is not null
        or a.after + 1 < p.oldest
    order by a.place, v."offset";
end
$$;
