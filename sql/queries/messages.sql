-- name: list
-- The mailbox of a workflow, oldest first, behind message $2, at most $3. Both halves by key; the sum keeps the planner from
-- wading through the messages of all workflows in their order.
select m.id, m.topic, m.sender, m.created_at, m.consumed_by
from (
    select m.* from holdfast.messages m where m.workflow_id = $1 and m.consumed_by is null and m.id > $2
    union all
    select m.* from holdfast.messages m where m.workflow_id = $1 and m.consumed_by is not null and m.id > $2) m
order by m.id + 0
limit $3;
