-- name: register
-- A new executor; the session holds its lock.
select holdfast.register_executor($1, $2, $3, $4);

-- name: beat
-- Heartbeat and bell to oneself in one statement.
select alive, locked, suspects from holdfast.beat($1, $2, $3, $4);

-- name: list
-- Executors that are not fenced, and what can be seen of their life.
select id, name, locked, beats_missed, leases_missed, heartbeat_at from holdfast.list_executors($1);

-- name: fence
-- An executor is over, dead or by its own wish ($3), and its workflows are free.
select holdfast.fence($1, $2, $3);

-- name: evict
-- Ends the sessions that hold an executor's fence.
select holdfast.evict($1);
