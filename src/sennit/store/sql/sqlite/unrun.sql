-- unrun: running -> anything but succeeded. Takes the row out by its claim token and returns what it knew.

DELETE FROM sennit_running WHERE id = ? AND attempt = ?
RETURNING failures, crashes, worker_id, queue, order_us, started_us,
          EXISTS (SELECT 1 FROM sennit_permit WHERE task_id = sennit_running.id);

INSERT INTO sennit_parked (id, attempt, failures, crashes, reason, since_us) VALUES (?, ?, ?, ?, ?, ?);
