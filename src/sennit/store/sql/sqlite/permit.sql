-- permit: a call asks, waits in its lane, is let through. The row is the permit: counted while granted_us is set.
-- Atomic because the transaction holds SQLite's only write lock: what is free is counted where it is given.
-- The lanes and their heads are ranges of the index that holds only those that wait.

INSERT INTO sennit_permit (id, provider, model, worker_id, task_id, priority, tokens, since_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

UPDATE sennit_permit SET provider = ?, model = ?, granted_us = ?, mark = ?, fallback_for = ?, reason = ? WHERE id = ?;

-- with a claim
INSERT INTO sennit_permit (id, provider, model, worker_id, task_id, priority, tokens, since_us, granted_us, mark,
                           fallback_for, reason)
VALUES (?1, ?2, ?3, ?4, ?1, 0, 0, ?5, ?6, ?7, ?8, ?9);

-- the next lane in which a call waits
SELECT provider, model FROM sennit_permit
 WHERE granted_us IS NULL AND (provider, model) > (?, ?) ORDER BY provider, model LIMIT 1;

-- the first in a lane
SELECT priority, id, tokens, worker_id, task_id, since_us FROM sennit_permit
 WHERE granted_us IS NULL AND provider = ? AND model = ? ORDER BY priority, since_us, id LIMIT 1;

-- a request that is dropped
DELETE FROM sennit_permit WHERE id = ? AND granted_us IS NULL;

-- what became of a request
SELECT provider, model, fallback_for, since_us, granted_us, mark, reason FROM sennit_permit WHERE id = ?;

-- calls that wait
SELECT id, worker_id, provider, task_id FROM sennit_permit WHERE granted_us IS NULL ORDER BY id;

-- of one process; + keeps it from going through all that wait
SELECT p.id FROM json_each(?) AS mine CROSS JOIN sennit_permit AS p
 WHERE p.worker_id = mine.value AND +p.granted_us IS NULL;
