-- name: begin
-- Does nothing, but on a connection that begins its transaction with the first statement.
select pg_current_xact_id_if_assigned() is not null;

-- name: identify
-- Which database of which cluster this is; needs no privilege.
select concat_ws(' ', c.system_identifier, d.oid)
from pg_control_system() c, pg_database d where d.datname = current_database();

-- name: start
-- Notes that a workflow begins when this transaction commits.
select code, note from holdfast.intend_start($1, $2, $3, $4, $5, $6, $7);

-- name: send
-- Notes that a message is sent when this transaction commits.
select holdfast.intend_send($1, $2, $3, $4);
