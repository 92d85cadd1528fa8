-- The tables. Every one leads with the workflow it belongs to. Payloads are JSON in bytea; `origin` is the workflow for which
-- a payload was encoded, where that is not the one it belongs to: the other is a fork.

create table holdfast.executors (
    id            integer generated always as identity primary key,
    name          text not null,
    app_version   text,
    started_at    timestamptz not null,
    heartbeat_at  timestamptz not null,
    heartbeat     double precision not null default 1,
    lease         double precision not null default 10,
    last_claim    bigint not null default 0,
    fenced_at     timestamptz
);

create index executors_living on holdfast.executors (id) where fenced_at is null;

-- status: 0 ENQUEUED, 1 DELAYED, 2 PENDING, 3 SUCCESS, 4 ERROR, 5 CANCELLED, 6 QUARANTINED
-- output: the result of a SUCCESS, the error of an ERROR, the cause of a CANCELLED
-- claims: how often it was claimed; settled: how many of these claims are known to have come to something;
-- claim_mark: records behind this seq were made since the last claim
-- parked: executors whose code does not match its journal and that have passed it on
-- cancelled_with: the workflow that was cancelled, and this one with it; a resume takes them up again together
-- removing: its rows are being deleted, in batches; it can neither be resumed nor forked any more
create table holdfast.workflows (
    id             text collate "C" primary key,
    name           text collate "C" not null,
    status         smallint not null,
    cancelling     boolean not null default false,
    cancelled_with text collate "C",
    removing       boolean,
    executor_id    integer,
    epoch          integer not null default 0,
    claims         integer not null default 0,
    settled        integer not null default 0,
    claim_mark     bigint not null default 0,
    parked         integer[],
    generation     integer not null default 0,
    start_token    uuid not null,
    parent_id      text collate "C",
    parent_step    text collate "C",
    queue          text collate "C",
    priority       integer not null default 0,
    partition_key  text collate "C",
    dedup_key      text collate "C",
    app_version    text,
    attributes     jsonb,
    input          bytea not null,
    output         bytea,
    origin         text collate "C",
    timeout        double precision,
    deadline       timestamptz,
    wake_at        timestamptz,
    created_at     timestamptz not null,
    started_at     timestamptz,
    finished_at    timestamptz
) with (fillfactor = 80);

create index workflows_executor on holdfast.workflows (executor_id) where status = 2 and executor_id is not null;
create index workflows_released on holdfast.workflows (name) where status = 2 and executor_id is null and parked is null;
create index workflows_parked on holdfast.workflows (name) where status = 2 and executor_id is null and parked is not null;
create index workflows_enqueued on holdfast.workflows (name, created_at) where status = 0;
create index workflows_forks on holdfast.workflows (origin) where origin is not null;
create index workflows_children on holdfast.workflows (parent_id) where parent_id is not null;
-- Lists are read newest first. Two halves cost a start and a SUCCESS one entry each, as one index would, and whoever looks
-- for what runs or what went wrong does not wade through what went well.
create index workflows_succeeded on holdfast.workflows (created_at, id) where status = 3;
create index workflows_others on holdfast.workflows (created_at, id) where status <> 3;
create index workflows_finished on holdfast.workflows (finished_at) where finished_at is not null;
create index workflows_attributes on holdfast.workflows using gin (attributes jsonb_path_ops) where attributes is not null;
create index workflows_removing on holdfast.workflows (id) where removing;

-- outcome: see sql/README.md; seq is the order in which calls completed, NULL while a call waits
-- choice: which of its alternatives a call took, or which block's deadline ended it
-- covered: the outcome that an interruption lies over: it was recorded, but the caller never saw it; a resume uncovers it
create table holdfast.steps (
    workflow_id  text collate "C" not null,
    step_id      text collate "C" not null,
    seq          bigint,
    kind         text not null,
    name         text not null,
    target       text,
    outcome      smallint,
    attempts     smallint,
    choice       smallint,
    covered      smallint,
    output       bytea,
    origin       text collate "C",
    deadline     timestamptz,
    started_at   timestamptz not null,
    finished_at  timestamptz,
    primary key (workflow_id, step_id)
);

-- One number per batch: a record's seq is batch * 8192 + its place in the batch.
create sequence holdfast.batches cache 1;

create table holdfast.messages (
    id           bigint generated always as identity (cache 1) primary key,
    workflow_id  text collate "C" not null,
    topic        text collate "C" not null,
    payload      bytea not null,
    sender       text,
    sender_step  text,
    token        uuid,
    dedup_key    text collate "C",
    request      text collate "C",
    consumed_by  text collate "C",
    created_at   timestamptz not null
) with (fillfactor = 90);

create index messages_unconsumed on holdfast.messages (workflow_id, topic, id) where consumed_by is null;
create index messages_consumed on holdfast.messages (workflow_id, consumed_by) where consumed_by is not null;
create unique index messages_token on holdfast.messages (workflow_id, token) where token is not null;
create unique index messages_dedup on holdfast.messages (workflow_id, dedup_key) where dedup_key is not null;

create table holdfast.events (
    workflow_id  text collate "C" not null,
    key          text collate "C" not null,
    revision     integer not null,
    payload      bytea not null,
    origin       text collate "C",
    step_id      text not null,
    token        uuid,
    created_at   timestamptz not null,
    primary key (workflow_id, key, revision)
);

create table holdfast.stream_values (
    workflow_id  text collate "C" not null,
    key          text collate "C" not null,
    "offset"     bigint not null,
    payload      bytea not null,
    origin       text collate "C",
    attempt      smallint not null,
    step_id      text not null,
    token        uuid,
    created_at   timestamptz not null,
    primary key (workflow_id, key, "offset")
);

-- A row exists once there is something to say of a stream that its values do not: that it is closed, or that its values
-- before offset `oldest` are no longer kept.
create table holdfast.streams (
    workflow_id  text collate "C" not null,
    key          text collate "C" not null,
    closed_at    timestamptz,
    oldest       bigint not null default 0,
    step_id      text not null,
    primary key (workflow_id, key)
);

-- What an open transaction of somebody else's (conn= in Python, the functions for SQL) is to do when it commits. It does it
-- then and not before, so that nobody waits for the end of a transaction that holds an id, a key or a workflow. The rows
-- live and go within their transaction: to everybody else the table is empty, and nothing of it needs to survive a crash.
-- kind: start (name: of the definition), send (name: the topic), cancel
create unlogged table holdfast.intents (
    transaction  xid8 not null default pg_current_xact_id(),
    workflow_id  text collate "C" not null,
    place        bigint not null generated always as identity,
    kind         text not null,
    name         text collate "C",
    payload      bytea,
    token        uuid not null default gen_random_uuid(),
    dedup_key    text collate "C",
    attributes   jsonb,
    timeout      double precision,
    app_version  text,
    strict       boolean not null default false,
    primary key (transaction, workflow_id, place)
);

-- Its body is in functions/: a constraint trigger cannot be replaced, what it calls can.
create function holdfast.settle_intents() returns trigger language plpgsql as
$$ begin raise 'the functions of this schema are missing'; end $$;

create constraint trigger settle after insert on holdfast.intents
    deferrable initially deferred for each row execute function holdfast.settle_intents();
alter table holdfast.intents enable always trigger settle;
