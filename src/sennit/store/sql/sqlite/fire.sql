-- fire: scheduled -> ready for all that is due, and the time limits that have passed.
-- Both reads are ranges of a primary key that starts with due_us.

SELECT m.due_us, m.id, m.attempt, m.failures, m.crashes, t.queue, t.priority, t.thread_id, t.provider, t.route
  FROM sennit_timer AS m JOIN sennit_task AS t ON t.id = m.id
 WHERE m.due_us <= ? ORDER BY m.due_us, m.id LIMIT 1000;

DELETE FROM sennit_timer WHERE due_us = ? AND id = ?;

SELECT due_us, id, kind FROM sennit_deadline WHERE due_us <= ? ORDER BY due_us, id LIMIT 1000;

DELETE FROM sennit_deadline WHERE due_us = ? AND id = ? AND kind = ?;

SELECT state FROM sennit_task WHERE id = ?;

-- A client has no lease: its life lock says whether it lives.
SELECT id FROM sennit_worker AS w
 WHERE expire_us <= ? AND lease_us > 0
   AND (EXISTS (SELECT 1 FROM sennit_running AS r WHERE r.worker_id = w.id)
        OR EXISTS (SELECT 1 FROM sennit_permit AS p WHERE p.worker_id = w.id)) ORDER BY id;

-- the next deadline of any kind; a worker's own lease is its heartbeat's business. A lease that has not lapsed counts
-- also while nothing is held under it: a claim in its first half renews nothing, so nobody would hear of it again.
-- Whether somebody is held back by a provider until now is asked beside it; what that brings may be due sooner.
SELECT min(due_us), EXISTS (SELECT 1 FROM sennit_provider WHERE wake_us <= :now_us) FROM (
  SELECT min(due_us) AS due_us FROM sennit_timer
  UNION ALL SELECT min(due_us) FROM sennit_deadline
  UNION ALL SELECT min(expires_us) FROM sennit_ask WHERE state = 'open' AND expires_us IS NOT NULL
  UNION ALL SELECT min(wake_us) FROM sennit_provider WHERE wake_us IS NOT NULL
  UNION ALL SELECT min(expire_us) FROM sennit_worker WHERE id <> :worker_id AND expire_us > :now_us) AS dues;
