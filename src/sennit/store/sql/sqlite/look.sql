-- look: read-only views. An open task is found through the narrow table that holds it.

-- one task (by its primary key) or the newest that match; every filter is switched off by NULL
SELECT t.id, t.handler, t.queue, t.priority, t.thread_id, t.key, t.parent_id, t.created_us, t.state, t.done_us, t.error,
       coalesce(r.attempt, q.attempt, m.attempt, p.attempt, w.attempt, t.attempt),
       coalesce(r.failures, q.failures, m.failures, p.failures, w.failures, t.failures),
       coalesce(r.crashes, q.crashes, m.crashes, p.crashes, w.crashes, t.crashes),
       coalesce(r.worker_id, t.worker_id), coalesce(CASE WHEN r.is_ahead = 0 THEN r.started_us END, t.started_us),
       CASE WHEN t.state <> 0 THEN CAST(t.state AS TEXT) WHEN r.id IS NOT NULL THEN 'running' WHEN q.id IS NOT NULL THEN 'ready'
            WHEN w.id IS NOT NULL THEN 'waiting' WHEN m.id IS NOT NULL THEN 'scheduled' WHEN p.id IS NOT NULL THEN 'suspended' END,
       m.due_us, coalesce(w.need, 0),
       coalesce(m.reason, p.reason, CASE WHEN r.is_ahead = 1 THEN 'ahead' WHEN u.held = 0 THEN 'thread' WHEN u.gate_us IS NOT NULL THEN 'threads_max' END, ''),
       CASE WHEN CAST(:id AS BIGINT) IS NULL THEN NULL ELSE t.result END, CASE WHEN CAST(:id AS BIGINT) IS NULL THEN NULL ELSE t.payload END,
       t.provider, t.route
  FROM sennit_task AS t
  LEFT JOIN sennit_running AS r ON r.id = t.id
  LEFT JOIN sennit_ready   AS q ON q.id = t.id
  LEFT JOIN sennit_waiting AS w ON w.id = t.id
  LEFT JOIN sennit_timer   AS m ON m.id = t.id
  LEFT JOIN sennit_parked  AS p ON p.id = t.id
  LEFT JOIN sennit_turn    AS u ON u.id = t.id
 WHERE t.id BETWEEN coalesce(CAST(:id AS BIGINT), 0) AND coalesce(CAST(:id AS BIGINT), 9223372036854775807)
   AND (CAST(:queue AS TEXT) IS NULL OR t.queue = :queue)
   AND (CAST(:handler AS TEXT) IS NULL OR t.handler = :handler)
   AND (CAST(:thread_id AS TEXT) IS NULL OR t.thread_id = :thread_id)
   AND (CAST(:states AS TEXT) IS NULL OR CASE WHEN t.state <> 0 THEN CAST(t.state AS TEXT) WHEN r.id IS NOT NULL THEN 'running'
        WHEN q.id IS NOT NULL THEN 'ready' WHEN w.id IS NOT NULL THEN 'waiting' WHEN m.id IS NOT NULL THEN 'scheduled'
        ELSE 'suspended' END IN (SELECT value FROM json_each(:states)))
 ORDER BY t.id DESC LIMIT :n;

SELECT queue, 'ready', count(*) FROM sennit_ready GROUP BY queue
UNION ALL SELECT queue, 'running', count(*) FROM sennit_running GROUP BY queue
UNION ALL SELECT t.queue, 'waiting', count(*) FROM sennit_waiting AS w JOIN sennit_task AS t ON t.id = w.id GROUP BY t.queue
UNION ALL SELECT t.queue, 'scheduled', count(*) FROM sennit_timer AS m JOIN sennit_task AS t ON t.id = m.id GROUP BY t.queue
UNION ALL SELECT t.queue, 'suspended', count(*) FROM sennit_parked AS p JOIN sennit_task AS t ON t.id = p.id GROUP BY t.queue;

SELECT attempt, outcome, worker_id, started_us, ended_us, error FROM sennit_attempt WHERE task_id = ? ORDER BY attempt;

SELECT seq, task_id, attempt, at_us, level, text FROM sennit_log WHERE task_id = ? AND seq > ? ORDER BY seq LIMIT ?;

SELECT w.info, w.bell, w.expire_us, (SELECT count(*) FROM sennit_running AS r WHERE r.worker_id = w.id)
  FROM sennit_worker AS w ORDER BY w.id;

SELECT name, sum(n) FROM sennit_ledger GROUP BY name
UNION ALL SELECT 'live', (SELECT count(*) FROM sennit_waiting) + (SELECT count(*) FROM sennit_ready)
  + (SELECT count(*) FROM sennit_running) + (SELECT count(*) FROM sennit_timer) + (SELECT count(*) FROM sennit_parked);

SELECT id, state, attempt, result, error FROM sennit_task WHERE id = ?;

-- tasks that ended since a moment, for the watches of another process; uses the index on done_us
SELECT id, done_us FROM sennit_task WHERE done_us >= ? ORDER BY done_us;

-- what open tasks need of their worker; the index holds only those that need something
SELECT t.queue, t.route, count(*), count(q.id)
  FROM sennit_task AS t LEFT JOIN sennit_ready AS q ON q.id = t.id
 WHERE t.route > '' AND t.state = 0 GROUP BY t.route, t.queue ORDER BY t.route, t.queue;

-- of many; one that is not named is unknown
SELECT t.id, t.state, t.attempt, t.result, t.error FROM json_each(?) AS asked CROSS JOIN sennit_task AS t WHERE t.id = asked.value;

-- the same of those that have ended
SELECT t.id, t.state, t.attempt, t.result, t.error FROM json_each(?) AS asked CROSS JOIN sennit_task AS t
 WHERE t.id = asked.value AND t.state <> 0;
