-- Forgets the values of a stream before an offset, at most so many of them at once; done: none are left. Offsets are not
-- given again: what is written next goes on behind `oldest`, which never exceeds the stream's length nor goes back. So it
-- may be called any number of times. No row: there is no such workflow.
create or replace function holdfast.trim_stream(workflow text, stream text, before bigint, most integer)
returns table (oldest bigint, done boolean)
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as
$$
declare
    first bigint;
    status smallint := (select w.status from holdfast.workflows w where w.id = workflow);
begin
    if status > 2 then
        status := (select w.status from holdfast.workflows w where w.id = workflow for key share);
    end if;
    if status is null then
        return;
    end if;
    insert into holdfast.streams as s (workflow_id, key, oldest, step_id)
    values (workflow, stream, least(before, coalesce((
        select v."offset" + 1 from holdfast.stream_values v where v.workflow_id = workflow and v.key = stream
        order by v."offset" desc limit 1), 0)), '')
    on conflict (workflow_id, key) do update set oldest = greatest(s.oldest, excluded.oldest)
    returning s.oldest into oldest;
    first := (
        select v."offset" from holdfast.stream_values v where v.workflow_id = workflow and v.key = stream
        order by v."offset" limit 1);
    delete from holdfast.stream_values v
    where v.workflow_id = workflow and v.key = stream and v."offset" < least(oldest, first + most);
    done := coalesce(first + most >= oldest, true);
    return next;
end
$$;
