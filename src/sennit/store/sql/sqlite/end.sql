-- end: any live state -> failed | cancelled, for a task that is in no narrow table any more.

UPDATE sennit_task
   SET state = ?, error = ?, done_us = ?, attempt = ?, failures = ?, crashes = ?, worker_id = ?, started_us = ?
 WHERE id = ?;

-- what an ended task might have had: a time limit, an open question, a turn, a permit. All at once, for every end asks
-- it, and mostly there is nothing.
SELECT EXISTS (SELECT 1 FROM sennit_deadline), EXISTS (SELECT 1 FROM sennit_ask WHERE state = 'open'),
       EXISTS (SELECT 1 FROM sennit_turn), EXISTS (SELECT 1 FROM sennit_permit WHERE task_id IS NOT NULL);

-- the history of an attempt that did not succeed
INSERT INTO sennit_attempt (task_id, attempt, outcome, worker_id, started_us, ended_us, error)
VALUES (?, ?, ?, ?, ?, ?, ?);
