-- 0003 providers: what is known of them, permits for calls, budgets, and what tasks have waited for.

ALTER TABLE sennit_task ADD COLUMN provider TEXT NOT NULL DEFAULT '';  -- '' none, else `name` or `name/model`

-- The ready tasks of a queue stand in lanes, one per provider: a full provider is passed over with one step.
-- `since_us` is since when a task waits here, where that is not what order_us says: one that was put back.
ALTER TABLE sennit_ready RENAME TO sennit_ready_before;
CREATE TABLE sennit_ready (
  queue    TEXT    NOT NULL,
  provider TEXT    NOT NULL DEFAULT '',
  order_us INTEGER NOT NULL,               -- model.order: smallest first
  id       INTEGER NOT NULL,
  attempt  INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  crashes  INTEGER NOT NULL,
  since_us INTEGER,
  PRIMARY KEY (queue, provider, order_us, id)
) WITHOUT ROWID;
INSERT INTO sennit_ready (queue, order_us, id, attempt, failures, crashes)
SELECT queue, order_us, id, attempt, failures, crashes FROM sennit_ready_before;
DROP TABLE sennit_ready_before;
CREATE INDEX sennit_ready_id       ON sennit_ready (id);
CREATE INDEX sennit_ready_provider ON sennit_ready (provider, queue) WHERE provider <> '';

-- What was declared and what was learnt. `wake_us`: somebody is held back until then, unless a report comes first.
CREATE TABLE sennit_provider (
  name    TEXT PRIMARY KEY,
  spec    BLOB NOT NULL,
  state   BLOB NOT NULL,
  wake_us INTEGER
) WITHOUT ROWID;
CREATE INDEX sennit_provider_wake ON sennit_provider (wake_us) WHERE wake_us IS NOT NULL;

-- One row per call that was let through, or waits for that. The permit of a claim has the id of its task.
CREATE TABLE sennit_permit (
  id           INTEGER PRIMARY KEY,
  provider     TEXT    NOT NULL,           -- who gives it; while it waits, who was asked
  model        TEXT    NOT NULL,
  worker_id    INTEGER NOT NULL,
  task_id      INTEGER,
  priority     INTEGER NOT NULL,
  tokens       INTEGER NOT NULL,
  since_us     INTEGER NOT NULL,
  granted_us   INTEGER,                    -- NULL while it waits
  mark         BLOB,
  fallback_for TEXT    NOT NULL DEFAULT '',
  reason       TEXT    NOT NULL DEFAULT '' -- what it waited for at last
);
CREATE INDEX sennit_permit_line   ON sennit_permit (provider, model, priority, since_us, id) WHERE granted_us IS NULL;
CREATE INDEX sennit_permit_out    ON sennit_permit (provider, model)               WHERE granted_us IS NOT NULL;
CREATE INDEX sennit_permit_task   ON sennit_permit (task_id)                       WHERE task_id IS NOT NULL;
CREATE INDEX sennit_permit_worker ON sennit_permit (worker_id);

-- Lanes in which somebody is held back by the provider: since when, and for what at last.
CREATE TABLE sennit_held (
  lane     TEXT PRIMARY KEY,               -- `name` or `name/model`
  reason   TEXT    NOT NULL,
  since_us INTEGER NOT NULL
) WITHOUT ROWID;

-- Budgets. Key '' of a scope other than the fleet stands for each of its kind; `is_own` is 0 for what follows from it.
CREATE TABLE sennit_budget (
  scope         TEXT    NOT NULL,
  key           TEXT    NOT NULL,
  tokens_max    INTEGER NOT NULL,
  cost_nano_max INTEGER NOT NULL,
  on_exceeded   TEXT    NOT NULL,
  tokens        INTEGER NOT NULL DEFAULT 0,
  cost_nano     INTEGER NOT NULL DEFAULT 0,
  is_own        INTEGER NOT NULL DEFAULT 1,
  is_spent      INTEGER GENERATED ALWAYS AS
                ((tokens_max > 0 AND tokens >= tokens_max) OR (cost_nano_max > 0 AND cost_nano >= cost_nano_max)) VIRTUAL,
  PRIMARY KEY (scope, key)
) WITHOUT ROWID;
CREATE INDEX sennit_budget_spent ON sennit_budget (scope) WHERE is_spent = 1;

-- How long a task was held back, by reason; `early_us` is the part of it before its first start.
CREATE TABLE sennit_wait (
  task_id  INTEGER NOT NULL,
  reason   TEXT    NOT NULL,
  us       INTEGER NOT NULL,
  early_us INTEGER NOT NULL,
  PRIMARY KEY (task_id, reason)
) WITHOUT ROWID;

-- The first start of tasks whose first attempt is not in the history: it was suspended, slept or was given back.
CREATE TABLE sennit_begun (
  task_id    INTEGER PRIMARY KEY,
  started_us INTEGER NOT NULL
);
