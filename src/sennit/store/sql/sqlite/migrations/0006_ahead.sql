-- 0006 ahead: tasks that a process has claimed beyond its slots, and not begun. The index holds only these.

ALTER TABLE sennit_running ADD COLUMN is_ahead INTEGER NOT NULL DEFAULT 0;
CREATE INDEX sennit_running_ahead ON sennit_running (queue, worker_id, order_us, id) WHERE is_ahead = 1;
