-- end: any live state -> failed | cancelled, for a task that is in no narrow table any more.

UPDATE sennit_task
   SET state = ?, error = ?, done_us = ?, attempt = ?, failures = ?, crashes = ?, worker_id = ?, started_us = ?
 WHERE id = ?;

-- the history of an attempt that did not succeed
INSERT INTO sennit_attempt (task_id, attempt, outcome, worker_id, started_us, ended_us, error)
VALUES (?, ?, ?, ?, ?, ?, ?);
