-- For people: payloads as text, codes as words. Nothing in the library reads these.

create view holdfast.workflow_list as
select id, name,
    (array['ENQUEUED', 'DELAYED', 'PENDING', 'SUCCESS', 'ERROR', 'CANCELLED', 'QUARANTINED'])[status + 1] as status,
    cancelling, executor_id, epoch, claims, parent_id, convert_from(input, 'UTF8') as input,
    case when status = 3 then convert_from(output, 'UTF8') end as output,
    case when status in (4, 5) then convert_from(output, 'UTF8') end as error,
    deadline, created_at, started_at, finished_at
from holdfast.workflows;

create view holdfast.step_list as
select workflow_id, step_id, seq, kind, name, target,
    (array['value', 'error', 'interrupted', 'timeout', 'not found', 'finished', 'conflict', 'closed', 'cancelled', 'quarantined'])[outcome + 1] as outcome,
    attempts, convert_from(output, 'UTF8') as output, deadline, started_at, finished_at
from holdfast.steps;

create view holdfast.message_list as
select id, workflow_id, topic, convert_from(payload, 'UTF8') as message, sender, dedup_key, consumed_by, created_at
from holdfast.messages;

create view holdfast.event_list as
select workflow_id, key, revision, convert_from(payload, 'UTF8') as value, step_id, created_at
from holdfast.events;

create view holdfast.stream_list as
select workflow_id, key, "offset", convert_from(payload, 'UTF8') as value, attempt, step_id, created_at
from holdfast.stream_values;
