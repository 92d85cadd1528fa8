-- name: redeem
-- Sends the message of a token, once; true also when an earlier try of this very call has done so.
select holdfast.redeem_token($1, $2, $3, $4, $5, to_timestamp($6::double precision), $7);
