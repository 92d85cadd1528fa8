-- name: claim
-- Takes free workflows for this executor; see holdfast.claim_workflows.
select id, name, status, epoch, claims, generation, input, origin, cancelling, parent_id,
    remaining
from holdfast.claim_workflows($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: settle
-- Claims of workflows that have come to something [W13].
select holdfast.settle_workflows($1, $2, $3);

-- name: park
-- Gives back a workflow whose code here does not match its journal [W5]; its status, NULL if it is another's by now.
select holdfast.park_workflow($1, $2, $3, $4, $5);

-- name: cancel
-- Asks a workflow and its children to end; gives each that was active. $3: only while it is in this epoch, NULL for any.
select id, executor_id from holdfast.cancel_workflow($1, $2, $3);

-- name: list_cancelling
-- Which of this executor's workflows have been asked to end, and in which epoch.
select id, epoch from holdfast.list_cancelling($1);

-- name: load_status
-- One workflow as people look at it.
select w.id, w.name, w.status, w.cancelling, w.created_at, w.started_at, w.finished_at, e.name as executor, w.claims,
    w.queue, w.output, w.attributes::text, w.parent_id
from holdfast.workflows w
left join holdfast.executors e on e.id = w.executor_id
where w.id = $1;

-- name: list
-- Workflows as people look at them, newest first; see holdfast.list_workflows.
select id, name, status, cancelling, created_at, started_at, finished_at, executor, claims, queue, output, attributes,
    parent_id
from holdfast.list_workflows($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14);

-- name: resume
-- Takes up a workflow that has ended; see holdfast.resume_workflow.
select said, id, epoch, output from holdfast.resume_workflow($1, $2, $3);

-- name: fork
-- A new workflow with a part of another's history; see holdfast.fork_workflow.
select holdfast.fork_workflow($1, $2, $3, $4, $5);

-- name: delete
-- Deletes an ended workflow, or so many of its rows; see holdfast.delete_workflow.
select holdfast.delete_workflow($1, $2, $3);

-- name: prune
-- Deletes workflows that have ended long ago, in so many rows; see holdfast.prune_workflows.
select removed, reached from holdfast.prune_workflows($1, $2, $3, $4);

-- name: exists
-- Is there a workflow of this id?
select exists (select from holdfast.workflows where id = $1);

-- name: look_results
-- How workflows have ended, many at once.
select place, status, output, name from holdfast.look_results($1);
