-- agent: the last view of a task's agent, replaced as a whole by each note of the attempt that holds the task.
-- Found by its primary key; what is live by the index that holds only those without a last word. With each view come the
-- facts from which its status now follows: how the task ended and when, and by how many attempts the running one is later.

INSERT INTO sennit_agent (task_id, attempt, status, is_kept, info) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (task_id) DO UPDATE SET attempt = excluded.attempt, status = excluded.status, is_kept = excluded.is_kept,
  info = excluded.info;

-- newest first; with :ended only those that have
SELECT a.info, t.state, t.done_us, CASE WHEN r.is_ahead = 0 THEN r.attempt - a.attempt END
  FROM sennit_agent AS a CROSS JOIN sennit_task AS t LEFT JOIN sennit_running AS r ON r.id = a.task_id
 WHERE a.task_id < :before_id AND t.id = a.task_id
   AND (:ended = 0 OR t.state <> 0 OR a.status IN ('done', 'failed'))
 ORDER BY a.task_id DESC LIMIT :n;

-- those that have not ended
SELECT a.info, t.state, t.done_us, CASE WHEN r.is_ahead = 0 THEN r.attempt - a.attempt END
  FROM sennit_agent AS a CROSS JOIN sennit_task AS t LEFT JOIN sennit_running AS r ON r.id = a.task_id
 WHERE a.task_id < :before_id AND a.status NOT IN ('done', 'failed') AND t.id = a.task_id AND t.state = 0
 ORDER BY a.task_id DESC LIMIT :n;

-- those of certain tasks
SELECT a.info, t.state, t.done_us, CASE WHEN r.is_ahead = 0 THEN r.attempt - a.attempt END
  FROM json_each(?) AS asked CROSS JOIN sennit_agent AS a CROSS JOIN sennit_task AS t
  LEFT JOIN sennit_running AS r ON r.id = a.task_id
 WHERE a.task_id = asked.value AND t.id = a.task_id;

SELECT t.handler, a.status, t.state, CASE WHEN r.is_ahead = 0 THEN min(r.attempt - a.attempt, 1) END AS later, count(*)
  FROM sennit_agent AS a CROSS JOIN sennit_task AS t LEFT JOIN sennit_running AS r ON r.id = a.task_id
 WHERE t.id = a.task_id GROUP BY t.handler, a.status, t.state, later;

SELECT info FROM sennit_agent WHERE task_id = ?;
