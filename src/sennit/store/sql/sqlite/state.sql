-- state: a new version of what a thread remembers. Compare-and-set: the comparison is in the statement that writes.
-- The index on (thread_id, name, version) finds the present version in one step.

INSERT INTO sennit_state (thread_id, name, version, data, at_us, task_id, operation_id)
SELECT :thread_id, :name, :expected + 1, :data, :now_us, :task_id, :operation_id
 WHERE coalesce((SELECT max(version) FROM sennit_state WHERE thread_id = :thread_id AND name = :name), 0) = :expected;

SELECT version, data, at_us, task_id, operation_id FROM sennit_state
 WHERE thread_id = ? AND name = ? ORDER BY version DESC LIMIT 1;

SELECT version, data, at_us, task_id, operation_id FROM sennit_state WHERE thread_id = ? AND name = ? AND version = ?;

SELECT version, data, at_us, task_id, operation_id FROM sennit_state
 WHERE thread_id = ? AND name = ? AND operation_id = ?;

-- retention: the version that falls off the end goes, or stays without data while it remembers an operation
DELETE FROM sennit_state WHERE thread_id = ? AND name = ? AND version = ? AND operation_id IS NULL;

UPDATE sennit_state SET data = NULL WHERE thread_id = ? AND name = ? AND version = ?;

SELECT version, data, at_us, task_id, operation_id FROM sennit_state
 WHERE thread_id = ? AND name = ? AND data IS NOT NULL ORDER BY version DESC LIMIT ?;

-- rollback: the first version one of these tasks wrote
SELECT min(version) FROM sennit_state
 WHERE thread_id = ? AND name = 'state' AND task_id IN (SELECT value FROM json_each(?));

-- what was rolled back has not happened: its operations may be done again
UPDATE sennit_state SET operation_id = NULL WHERE thread_id = ? AND name = 'state' AND version >= ?;

-- forget: the last version of each chain stays, without data, so that its number is not used again
DELETE FROM sennit_state AS s WHERE thread_id = ?
   AND version < (SELECT max(version) FROM sennit_state WHERE thread_id = s.thread_id AND name = s.name);

UPDATE sennit_state SET data = NULL, operation_id = NULL, task_id = NULL, at_us = ? WHERE thread_id = ? AND data IS NOT NULL;

-- threads at a glance: those with open tasks first, then the last written
SELECT h.thread_id, h.holder, h.open, coalesce(q.asks, 0), coalesce(s.version, 0), coalesce(s.at_us, 0)
  FROM (SELECT thread_id, max(CASE WHEN held = 1 THEN id END) AS holder, count(*) AS open FROM sennit_turn GROUP BY thread_id
        UNION ALL
        SELECT DISTINCT thread_id, CAST(NULL AS BIGINT), 0 FROM sennit_state
         WHERE data IS NOT NULL AND thread_id NOT IN (SELECT thread_id FROM sennit_turn)) AS h
  LEFT JOIN sennit_state AS s ON s.thread_id = h.thread_id AND s.name = 'state'
       AND s.version = (SELECT max(version) FROM sennit_state WHERE thread_id = h.thread_id AND name = 'state')
  LEFT JOIN (SELECT v.thread_id, count(*) AS asks FROM sennit_ask AS a JOIN sennit_turn AS v ON v.id = a.task_id
              WHERE a.state = 'open' AND a.kind = 'ask' GROUP BY v.thread_id) AS q ON q.thread_id = h.thread_id
 ORDER BY h.open = 0, coalesce(s.at_us, 0) DESC, h.thread_id LIMIT ?;
