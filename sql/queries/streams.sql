-- name: look
-- The values of streams behind an offset, many streams at once, and what they have come to.
select place, "offset", payload, origin, attempt, closed, status, oldest, length
from holdfast.look_streams($1, $2, $3, $4, $5, $6);

-- name: trim
-- Forgets values of a stream before an offset; see holdfast.trim_stream.
select oldest, done from holdfast.trim_stream($1, $2, $3, $4);

-- name: list
-- The streams of a workflow: from key to key in the index, never over all values.
with recursive keys as (
    (select v.key from holdfast.stream_values v where v.workflow_id = $1 order by v.key limit 1)
    union all
    select (select v.key from holdfast.stream_values v where v.workflow_id = $1 and v.key > k.key order by v.key limit 1)
    from keys k where k.key is not null)
select n.key, coalesce(l."offset" + 1 - coalesce(s.oldest, 0), 0), s.closed_at is not null
from (select k.key from keys k where k.key is not null union select t.key from holdfast.streams t where t.workflow_id = $1) n
left join lateral (
    select v."offset" from holdfast.stream_values v where v.workflow_id = $1 and v.key = n.key
    order by v."offset" desc limit 1) l on true
left join holdfast.streams s on s.workflow_id = $1 and s.key = n.key
order by n.key;
