-- unrun: running -> anything but succeeded. Takes the row out by its claim token and returns what it knew,
-- and whether no other says when the task began first: this is the first attempt, or those before were only claimed ahead.

DELETE FROM sennit_running WHERE id = ? AND attempt = ?
RETURNING failures, crashes, worker_id, queue, order_us, started_us, is_ahead,
          attempt = 1 OR NOT EXISTS (SELECT 1 FROM sennit_attempt WHERE task_id = sennit_running.id)
                     AND NOT EXISTS (SELECT 1 FROM sennit_begun WHERE task_id = sennit_running.id),
          EXISTS (SELECT 1 FROM sennit_permit WHERE task_id = sennit_running.id);

INSERT INTO sennit_parked (id, attempt, failures, crashes, reason, since_us) VALUES (?, ?, ?, ?, ?, ?);
