-- look: read-only views. An open task is found through the narrow table that holds it.

-- one task (by its primary key) or the newest that match; every filter is switched off by NULL
SELECT t.id, t.handler, t.queue, t.priority, t.thread_id, t.key, t.parent_id, t.created_us, t.state, t.done_us, t.error,
       coalesce(r.attempt, q.attempt, m.attempt, p.attempt, w.attempt, t.attempt),
       coalesce(r.failures, q.failures, m.failures, p.failures, w.failures, t.failures),
       coalesce(r.crashes, q.crashes, m.crashes, p.crashes, w.crashes, t.crashes),
       coalesce(r.worker_id, t.worker_id), coalesce(r.started_us, t.started_us),
       CASE WHEN t.state THEN t.state WHEN r.id THEN 'running' WHEN q.id THEN 'ready' WHEN w.id THEN 'waiting'
            WHEN m.id THEN 'scheduled' WHEN p.id THEN 'suspended' END,
       m.due_us, coalesce(w.need, 0),
       coalesce(m.reason, p.reason, CASE WHEN u.held = 0 THEN 'thread' WHEN u.gate_us THEN 'threads_max' END, ''),
       CASE WHEN :id IS NULL THEN NULL ELSE t.result END, CASE WHEN :id IS NULL THEN X'' ELSE t.payload END,
       t.provider
  FROM sennit_task AS t
  LEFT JOIN sennit_running AS r ON r.id = t.id
  LEFT JOIN sennit_ready   AS q ON q.id = t.id
  LEFT JOIN sennit_waiting AS w ON w.id = t.id
  LEFT JOIN sennit_timer   AS m ON m.id = t.id
  LEFT JOIN sennit_parked  AS p ON p.id = t.id
  LEFT JOIN sennit_turn    AS u ON u.id = t.id
 WHERE t.id BETWEEN coalesce(:id, 0) AND coalesce(:id, 9223372036854775807)
   AND (:queue IS NULL OR t.queue = :queue)
   AND (:handler IS NULL OR t.handler = :handler)
   AND (:thread_id IS NULL OR t.thread_id = :thread_id)
   AND (:states IS NULL OR CASE WHEN t.state THEN t.state WHEN r.id THEN 'running' WHEN q.id THEN 'ready'
        WHEN w.id THEN 'waiting' WHEN m.id THEN 'scheduled' ELSE 'suspended' END IN (SELECT value FROM json_each(:states)))
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

SELECT name, n FROM sennit_ledger
UNION ALL SELECT 'live', (SELECT count(*) FROM sennit_waiting) + (SELECT count(*) FROM sennit_ready)
  + (SELECT count(*) FROM sennit_running) + (SELECT count(*) FROM sennit_timer) + (SELECT count(*) FROM sennit_parked);

SELECT state, attempt, result, error FROM sennit_task WHERE id = ?;

-- tasks that ended since a moment, for the watches of another process; uses the index on done_us
SELECT id, done_us FROM sennit_task WHERE done_us >= ? ORDER BY done_us;
