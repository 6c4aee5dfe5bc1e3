-- 0001 core: one wide row per task, one narrow table per live state.
-- Tables carry a prefix because `submit_in` invites the caller's own tables into the same file.

-- Facts about the file: schema, next id, the clock's offset for the running boot.
CREATE TABLE sennit_meta (
  name  TEXT PRIMARY KEY,
  value
) WITHOUT ROWID;

-- The wide row: written at submit and at the end, nothing in between.
CREATE TABLE sennit_task (
  id          INTEGER PRIMARY KEY,
  handler     TEXT    NOT NULL,
  queue       TEXT    NOT NULL,
  priority    INTEGER NOT NULL,
  thread_id   TEXT,
  key         TEXT,
  parent_id   INTEGER,
  child_key   TEXT,
  parents     INTEGER NOT NULL,            -- how many edges lead here; 0 spares the claim a look
  on_parent_failed TEXT NOT NULL,
  payload     BLOB    NOT NULL,
  options     BLOB,
  crashes_max INTEGER NOT NULL,
  delay_us    INTEGER NOT NULL,
  deadline_us INTEGER,
  created_us  INTEGER NOT NULL,
  state       INTEGER NOT NULL DEFAULT 0,  -- 0 open; else lifecycle.ENDED_CODES
  attempt     INTEGER NOT NULL DEFAULT 0,
  failures    INTEGER NOT NULL DEFAULT 0,
  crashes     INTEGER NOT NULL DEFAULT 0,
  worker_id   INTEGER,
  started_us  INTEGER,
  done_us     INTEGER,
  result      BLOB,
  error       BLOB
);
CREATE UNIQUE INDEX sennit_task_key   ON sennit_task (handler, key)         WHERE key IS NOT NULL;
CREATE UNIQUE INDEX sennit_task_child ON sennit_task (parent_id, child_key) WHERE child_key IS NOT NULL;
CREATE INDEX        sennit_task_done  ON sennit_task (done_us)              WHERE done_us IS NOT NULL;

-- Dependencies; pos is the place in the child's list of parents.
CREATE TABLE sennit_edge (
  parent INTEGER NOT NULL,
  child  INTEGER NOT NULL,
  pos    INTEGER NOT NULL,
  PRIMARY KEY (parent, child, pos)
) WITHOUT ROWID;
CREATE INDEX sennit_edge_child ON sennit_edge (child, pos);

-- The live states.
CREATE TABLE sennit_waiting (
  id   INTEGER PRIMARY KEY,
  need INTEGER NOT NULL                    -- parents that are open, each counted once
);
CREATE TABLE sennit_ready (
  queue    TEXT    NOT NULL,
  order_us INTEGER NOT NULL,               -- model.order: smallest first
  id       INTEGER NOT NULL,
  attempt  INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  crashes  INTEGER NOT NULL,
  PRIMARY KEY (queue, order_us, id)
) WITHOUT ROWID;
CREATE INDEX sennit_ready_id ON sennit_ready (id);
CREATE TABLE sennit_running (
  id         INTEGER PRIMARY KEY,
  attempt    INTEGER NOT NULL,
  failures   INTEGER NOT NULL,
  crashes    INTEGER NOT NULL,
  worker_id  INTEGER NOT NULL,
  queue      TEXT    NOT NULL,
  order_us   INTEGER NOT NULL,
  started_us INTEGER NOT NULL
);
CREATE TABLE sennit_timer (
  due_us   INTEGER NOT NULL,
  id       INTEGER NOT NULL,
  attempt  INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  crashes  INTEGER NOT NULL,
  reason   TEXT    NOT NULL,
  PRIMARY KEY (due_us, id)
) WITHOUT ROWID;
CREATE INDEX sennit_timer_id ON sennit_timer (id);
CREATE TABLE sennit_parked (
  id       INTEGER PRIMARY KEY,
  attempt  INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  crashes  INTEGER NOT NULL,
  reason   TEXT    NOT NULL,
  since_us INTEGER NOT NULL
);

-- Time limits of open tasks; kind is `deadline` or `queue_timeout`. They go when the task ends.
CREATE TABLE sennit_deadline (
  due_us INTEGER NOT NULL,
  id     INTEGER NOT NULL,
  kind   TEXT    NOT NULL,
  PRIMARY KEY (due_us, id, kind)
) WITHOUT ROWID;
CREATE INDEX sennit_deadline_id ON sennit_deadline (id);

-- The processes. One lease row per process: one heartbeat renews all it holds.
CREATE TABLE sennit_worker (
  id        INTEGER PRIMARY KEY,
  expire_us INTEGER NOT NULL,
  lease_us  INTEGER NOT NULL,
  pid       INTEGER NOT NULL,
  host      TEXT    NOT NULL,
  bell      TEXT    NOT NULL,                -- '' once it has left: it claims no more and hears nothing
  info      BLOB    NOT NULL
);
-- Attempts that were stopped from outside, until their process has been told.
CREATE TABLE sennit_stop (
  worker_id INTEGER NOT NULL,
  task_id   INTEGER NOT NULL,
  attempt   INTEGER NOT NULL,
  PRIMARY KEY (worker_id, task_id, attempt)
) WITHOUT ROWID;

-- What belongs to a task.
CREATE TABLE sennit_step (
  task_id INTEGER NOT NULL,
  key     TEXT    NOT NULL,
  result  BLOB    NOT NULL,
  PRIMARY KEY (task_id, key)
) WITHOUT ROWID;
CREATE TABLE sennit_attempt (
  task_id    INTEGER NOT NULL,
  attempt    INTEGER NOT NULL,
  outcome    TEXT    NOT NULL,
  worker_id  INTEGER,
  started_us INTEGER,
  ended_us   INTEGER NOT NULL,
  error      BLOB,
  PRIMARY KEY (task_id, attempt)
) WITHOUT ROWID;
CREATE TABLE sennit_log (
  seq     INTEGER PRIMARY KEY,
  task_id INTEGER NOT NULL,
  attempt INTEGER NOT NULL,
  at_us   INTEGER NOT NULL,
  level   TEXT    NOT NULL,
  text    TEXT    NOT NULL
);
CREATE INDEX sennit_log_task ON sennit_log (task_id, seq);

-- Schedules, the fair tag of each thread, and the counts that must balance.
CREATE TABLE sennit_schedule (
  name    TEXT PRIMARY KEY,
  next_us INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE sennit_fair (
  thread_id TEXT PRIMARY KEY,
  tag_us    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE sennit_ledger (
  name TEXT PRIMARY KEY,
  n    INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO sennit_ledger (name, n) VALUES
  ('submitted', 0), ('succeeded', 0), ('failed', 0), ('cancelled', 0),
  ('retried', 0), ('crashed', 0), ('refused', 0), ('pruned', 0);
INSERT INTO sennit_meta (name, value) VALUES ('next_id', 1);
