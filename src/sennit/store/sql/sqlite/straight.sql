-- straight: nothing -> running, for one plain task that this very transaction would claim for its own process.
-- Atomic because the transaction holds SQLite's only write lock: nobody can get in front between the look and the insert.
-- The look uses the primary keys of sennit_ready and sennit_worker. The wide row is the one of submit.sql for a fan-out.

-- nobody is in front of it, and the worker has a lease
SELECT NOT EXISTS (SELECT 1 FROM sennit_ready WHERE queue = :queue)
   AND NOT EXISTS (SELECT 1 FROM sennit_running WHERE is_ahead = 1 AND queue = :queue)
   AND EXISTS (SELECT 1 FROM sennit_worker WHERE id = :worker_id AND bell <> '');

INSERT INTO sennit_running (id, attempt, failures, crashes, worker_id, queue, order_us, started_us)
VALUES (?, 1, 0, 0, ?, ?, ?, ?);
