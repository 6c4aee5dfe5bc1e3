-- rescue: running -> ready | failed (poison), all that one dead worker held.

SELECT r.id, r.attempt, r.failures, r.crashes, r.started_us, t.queue, t.priority, t.thread_id, t.crashes_max
  FROM sennit_running AS r JOIN sennit_task AS t ON t.id = r.id
 WHERE r.worker_id = ? ORDER BY r.id;

DELETE FROM sennit_worker WHERE id = ?;

DELETE FROM sennit_stop WHERE worker_id = ?;
