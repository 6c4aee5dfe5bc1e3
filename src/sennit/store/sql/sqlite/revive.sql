-- revive: failed | cancelled -> ready, with fresh counts and without time limits.
-- One transaction with the row in sennit_ready, so nobody sees it open and nowhere.

UPDATE sennit_task
   SET state = 0, done_us = NULL, result = NULL, error = NULL, deadline_us = NULL, worker_id = NULL, started_us = NULL
 WHERE id = ?;

-- those that wait for others and had counted this parent as done (on_parent_failed is run) wait for it again
UPDATE sennit_waiting SET need = need + 1 WHERE free = 0 AND id IN (SELECT child FROM sennit_edge WHERE parent = ?);

SELECT queue, priority, thread_id, provider, route FROM sennit_task WHERE id = ?;
