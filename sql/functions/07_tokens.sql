-- Sends the message that a token allows, unless the token has been used, its time is over by the database's clock, or its
-- workflow does not exist or has ended: says whether it is sent, and nothing of why not. `attempt` is made before the first
-- try, so that a call whose reply was lost finds its own message when it tries again. An insert of the same key that is
-- still on its way is waited for.
create or replace function holdfast.redeem_token(
    destination text, topic text, message bytea, key text, attempt uuid, expires timestamptz, channel text
) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set enable_seqscan = off as
$$
#variable_conflict use_variable
begin
    insert into holdfast.messages (workflow_id, topic, payload, token, dedup_key, created_at)
    select destination, topic, message, attempt, key, holdfast.now()
    from holdfast.workflows w
    left join lateral (
        select true as there from holdfast.workflows e where e.id = destination and w.status > 2 limit 1 for key share) held
        on true
    where w.id = destination and w.status not in (3, 4) and (w.status <= 2 or held.there) and holdfast.now() < expires
    on conflict (workflow_id, dedup_key) where dedup_key is not null do nothing;
    if found then
        perform holdfast.ring(channel, array[holdfast.wake_key('message', destination, topic)]);
    end if;
    return exists (
        select from holdfast.messages m where m.workflow_id = destination and m.token = attempt);
end
$$;
