-- 0002 threads: turns, versioned state, questions, signals, cached results, admission.

-- The open tasks of each thread, in the order they were handed in. One of them has the turn: only it may become ready.
-- `active` is 1 while that task is ready or running (counted against threads_max); `gate_us` is its place in the order
-- while it has the turn and waits for room.
CREATE TABLE sennit_turn (
  thread_id TEXT    NOT NULL,
  seq       INTEGER NOT NULL,
  id        INTEGER NOT NULL,
  queue     TEXT    NOT NULL,
  held      INTEGER NOT NULL,
  active    INTEGER NOT NULL DEFAULT 0,
  gate_us   INTEGER,
  PRIMARY KEY (thread_id, seq)
) WITHOUT ROWID;
CREATE UNIQUE INDEX sennit_turn_id     ON sennit_turn (id);
CREATE INDEX        sennit_turn_queue  ON sennit_turn (queue)       WHERE held = 0;
CREATE INDEX        sennit_turn_active ON sennit_turn (active)      WHERE active = 1;
CREATE INDEX        sennit_turn_gate   ON sennit_turn (gate_us, id) WHERE gate_us IS NOT NULL;

DROP TABLE sennit_fair;
CREATE INDEX sennit_task_thread ON sennit_task (thread_id, id) WHERE thread_id IS NOT NULL;

-- A task that waits for its turn or for room may have been tried before (revived, retried): its counts come along.
ALTER TABLE sennit_waiting ADD COLUMN attempt  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sennit_waiting ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sennit_waiting ADD COLUMN crashes  INTEGER NOT NULL DEFAULT 0;
-- 1: it has been past its parents and its delay, and waits for its turn or for room only.
ALTER TABLE sennit_waiting ADD COLUMN free     INTEGER NOT NULL DEFAULT 0;

-- Tasks that are open now: what has started goes on, what waits falls into line behind it.
INSERT INTO sennit_turn (thread_id, seq, id, queue, held)
SELECT t.thread_id, row_number() OVER (PARTITION BY t.thread_id ORDER BY w.id IS NOT NULL, t.id), t.id, t.queue, w.id IS NULL
  FROM sennit_task AS t LEFT JOIN sennit_waiting AS w ON w.id = t.id
 WHERE t.state = 0 AND t.thread_id IS NOT NULL;
UPDATE sennit_turn SET held = 1 WHERE seq = 1;
UPDATE sennit_waiting SET need = need + 1 WHERE id IN (SELECT id FROM sennit_turn WHERE held = 0);

-- Versions of what a thread remembers; the highest is the present one. Old ones lose their data, and go with retention
-- when they only remember an operation.
CREATE TABLE sennit_state (
  thread_id    TEXT    NOT NULL,
  name         TEXT    NOT NULL,
  version      INTEGER NOT NULL,
  data         BLOB,
  at_us        INTEGER NOT NULL,
  task_id      INTEGER,
  operation_id TEXT
);
CREATE UNIQUE INDEX sennit_state_version   ON sennit_state (thread_id, name, version);
CREATE UNIQUE INDEX sennit_state_operation ON sennit_state (thread_id, name, operation_id) WHERE operation_id IS NOT NULL;
CREATE INDEX        sennit_state_dropped   ON sennit_state (at_us) WHERE data IS NULL;

-- Questions to people and waits for events. The answer of a closed one is also a step of its task.
CREATE TABLE sennit_ask (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,
  task_id    INTEGER NOT NULL,
  key        TEXT    NOT NULL,
  kind       TEXT    NOT NULL,                 -- ask | event
  name       TEXT    NOT NULL,                 -- of an event, with its key
  event_key  TEXT    NOT NULL,
  spec       BLOB    NOT NULL,
  assignee   TEXT    NOT NULL,
  level      INTEGER NOT NULL DEFAULT 0,
  version    INTEGER NOT NULL DEFAULT 1,
  state      TEXT    NOT NULL DEFAULT 'open',  -- open | answered | denied | expired | void
  created_us INTEGER NOT NULL,
  expires_us INTEGER,
  closed_us  INTEGER,
  answer     BLOB
);
CREATE UNIQUE INDEX sennit_ask_key    ON sennit_ask (task_id, key);
CREATE INDEX        sennit_ask_open   ON sennit_ask (kind, id)         WHERE state = 'open';
CREATE INDEX        sennit_ask_event  ON sennit_ask (name, event_key)  WHERE state = 'open' AND kind = 'event';
CREATE INDEX        sennit_ask_expiry ON sennit_ask (expires_us)       WHERE state = 'open' AND expires_us IS NOT NULL;

-- Signals nobody waited for yet.
CREATE TABLE sennit_signal (
  id        INTEGER PRIMARY KEY,
  name      TEXT    NOT NULL,
  event_key TEXT    NOT NULL,
  payload   BLOB    NOT NULL,
  at_us     INTEGER NOT NULL
);
CREATE INDEX sennit_signal_event ON sennit_signal (name, event_key, id);
CREATE INDEX sennit_signal_at    ON sennit_signal (at_us);

-- Which task stands for a call whose result is cached, and under which names that can be dropped.
CREATE TABLE sennit_cache (
  handler TEXT    NOT NULL,
  key     TEXT    NOT NULL,
  task_id INTEGER NOT NULL,
  PRIMARY KEY (handler, key)
) WITHOUT ROWID;
CREATE INDEX sennit_cache_task ON sennit_cache (task_id);
CREATE TABLE sennit_cache_tag (
  tag     TEXT NOT NULL,
  handler TEXT NOT NULL,
  key     TEXT NOT NULL,
  PRIMARY KEY (tag, handler, key)
) WITHOUT ROWID;
CREATE INDEX sennit_cache_tag_key ON sennit_cache_tag (handler, key);

-- Processes in which a submit waits for room in a queue: whoever claims there rings them.
CREATE TABLE sennit_blocked (
  queue     TEXT    NOT NULL,
  worker_id INTEGER NOT NULL,
  PRIMARY KEY (queue, worker_id)
) WITHOUT ROWID;

INSERT INTO sennit_meta (name, value) VALUES ('inbox', 0);
