-- finish: running -> succeeded. The claim token (id, attempt) must be in sennit_running: that row is the commit point.
-- The wide row takes over what the narrow one knew; a stale ending matches nothing and changes nothing.

UPDATE sennit_task
   SET state = 1, result = ?, done_us = ?, attempt = r.attempt, failures = r.failures, crashes = r.crashes,
       worker_id = r.worker_id, started_us = r.started_us
  FROM sennit_running AS r
 WHERE sennit_task.id = ? AND r.id = sennit_task.id AND r.attempt = ?;

DELETE FROM sennit_running WHERE id = ? AND attempt = ?;
