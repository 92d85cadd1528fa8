-- name: look
-- The values of streams behind an offset, many streams at once, and what they have come to.
select place, "offset", payload, attempt, closed, status from holdfast.look_streams($1, $2, $3, $4);
