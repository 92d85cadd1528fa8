-- name: look
-- The latest values of events, many at once.
select place, revision, payload, origin, status from holdfast.look_events($1, $2, $3);

-- name: list_latest
-- The latest value of every key of a workflow, but for the library's own.
select distinct on (key) key, revision, payload, origin from holdfast.events
where workflow_id = $1 and not starts_with(key, '::')
order by key, revision desc;

-- name: list_history
-- Every value of every key of a workflow, but for the library's own, in the order of their revisions.
select key, revision, payload, origin from holdfast.events
where workflow_id = $1 and not starts_with(key, '::')
order by key, revision;
