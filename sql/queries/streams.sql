-- name: look
-- The values of streams behind an offset, many streams at once, and what they have come to.
select place, "offset", payload, attempt, closed, status, oldest, length
from holdfast.look_streams($1, $2, $3, $4, $5, $6);

-- name: trim
-- Forgets values of a stream before an offset; see holdfast.trim_stream.
select oldest, done from holdfast.trim_stream($1, $2, $3, $4);
