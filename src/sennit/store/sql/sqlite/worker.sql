-- worker: a process joins, renews its lease, leaves. One row per process.
-- One that leaves while it holds something keeps its row, and so its lease, without a bell.

INSERT INTO sennit_worker (id, expire_us, lease_us, pid, host, bell, info) VALUES (?, ?, ?, ?, ?, ?, ?);

UPDATE sennit_worker SET expire_us = :now_us + :lease_us, lease_us = :lease_us WHERE id = :id;

-- renew at a claim, when more than half of the lease is used
UPDATE sennit_worker SET expire_us = :now_us + lease_us WHERE id = :id AND expire_us < :now_us + lease_us / 2;

SELECT id, attempt FROM sennit_running WHERE worker_id = ? ORDER BY id;

SELECT task_id, attempt FROM sennit_stop WHERE worker_id = ?;

DELETE FROM sennit_stop WHERE worker_id = ?;

SELECT id, bell FROM sennit_worker WHERE id <> ? AND bell <> '';

UPDATE sennit_worker SET bell = '' WHERE id = ?;

DELETE FROM sennit_worker WHERE id = ? AND NOT EXISTS (SELECT 1 FROM sennit_running WHERE worker_id = sennit_worker.id)
   AND NOT EXISTS (SELECT 1 FROM sennit_permit WHERE worker_id = sennit_worker.id);

INSERT INTO sennit_stop (worker_id, task_id, attempt) VALUES (?, ?, ?) ON CONFLICT DO NOTHING;

SELECT 1 FROM sennit_worker WHERE id = ? AND bell <> '';

-- something new about it
UPDATE sennit_worker SET info = ? WHERE id = ? AND bell <> '';

SELECT info FROM sennit_worker WHERE id = ?;
