-- name: list_journals
-- The journals of many workflows in one query, each in the order in which its calls completed; waiting calls last.
select workflow_id, step_id, seq, kind, name, target, outcome, output, attempts, finished_at is not null as finished,
    choice, origin
from holdfast.steps
where workflow_id = any ($1::text[])
order by workflow_id, seq nulls last;

-- name: list
-- The journal of one workflow as people look at it.
select step_id, kind, name, target, outcome, output, started_at, finished_at, origin
from holdfast.steps
where workflow_id = $1
order by seq nulls last, started_at;

-- name: record_transaction
-- The record of a @transaction step, in the user's own transaction: nothing is returned when the step is already recorded
-- or the executor has lost the workflow; the caller then rolls back.
select holdfast.record_transaction($1, $2, $3, $4, $5, $6, $7, $8);

-- name: load_record
-- One record of a journal, if it is complete.
select seq, kind, name, target, outcome, output, attempts from holdfast.steps
where workflow_id = $1 and step_id = $2 and finished_at is not null;
