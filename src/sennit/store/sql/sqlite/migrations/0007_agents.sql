-- 0007 agents: what the running attempt of a task has said last of its coding agent. One row per task, it goes with the task.
CREATE TABLE sennit_agent (
  task_id INTEGER PRIMARY KEY,
  attempt INTEGER NOT NULL,
  status  TEXT    NOT NULL,                -- as it was said; what holds now follows from the task too (store.agent_views)
  is_kept INTEGER NOT NULL,                -- 1: a worktree of it is there, and the task is not pruned
  info    BLOB    NOT NULL
);
-- Those that have not said their last word, few of all that are kept: what is live is among them.
CREATE INDEX sennit_agent_open ON sennit_agent (task_id) WHERE status NOT IN ('done', 'failed');
