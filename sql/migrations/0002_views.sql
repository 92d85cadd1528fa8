-- For people: payloads as text, codes as words. Nothing in the library reads these.

-- JSON as text; what a codec has made of it, in hexadecimal.
create function holdfast.as_text(payload bytea) returns text
language plpgsql immutable strict set search_path = pg_catalog, pg_temp as
$$
begin
    return convert_from(payload, 'UTF8');
exception when character_not_in_repertoire or untranslatable_character then
    return payload::text;
end
$$;

create view holdfast.workflow_list as
select id, name,
    (array['ENQUEUED', 'DELAYED', 'PENDING', 'SUCCESS', 'ERROR', 'CANCELLED', 'QUARANTINED'])[status + 1] as status,
    cancelling, executor_id, epoch, claims, parent_id, holdfast.as_text(input) as input,
    case when status = 3 then holdfast.as_text(output) end as output,
    case when status in (4, 5) then holdfast.as_text(output) end as error,
    deadline, created_at, started_at, finished_at, generation, parked
from holdfast.workflows;

create view holdfast.step_list as
select workflow_id, step_id, seq, kind, name, target,
    (array['value', 'error', 'interrupted', 'timeout', 'not found', 'finished', 'conflict', 'closed', 'cancelled', 'quarantined',
        null, null, null, 'expired'])[outcome + 1] as outcome,
    attempts, holdfast.as_text(output) as output, deadline, started_at, finished_at
from holdfast.steps;

create view holdfast.message_list as
select id, workflow_id, topic, holdfast.as_text(payload) as message, sender, dedup_key, request, consumed_by, created_at
from holdfast.messages;

create view holdfast.event_list as
select workflow_id, key, revision, holdfast.as_text(payload) as value, step_id, created_at
from holdfast.events;

create view holdfast.stream_list as
select workflow_id, key, "offset", holdfast.as_text(payload) as value, attempt, step_id, created_at
from holdfast.stream_values;
