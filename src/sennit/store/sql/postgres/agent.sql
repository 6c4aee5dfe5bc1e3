-- agent: the views first and then the task of each, whatever the statistics say (LATERAL … OFFSET 0: the planner does not see
-- through that); else it goes through all tasks for those that are open. The two-argument min() of SQLite is least() here.

-- instead of 2: see above
SELECT a.info, t.state, t.done_us, CASE WHEN r.is_ahead = 0 THEN r.attempt - a.attempt END
  FROM sennit_agent AS a
 CROSS JOIN LATERAL (SELECT t.state, t.done_us FROM sennit_task AS t WHERE t.id = a.task_id OFFSET 0) AS t
  LEFT JOIN LATERAL (SELECT r.attempt, r.is_ahead FROM sennit_running AS r WHERE r.id = a.task_id OFFSET 0) AS r ON true
 WHERE a.task_id < :before_id AND (:ended = 0 OR t.state <> 0 OR a.status IN ('done', 'failed'))
 ORDER BY a.task_id DESC LIMIT :n;

-- instead of 3: see above
SELECT a.info, t.state, t.done_us, CASE WHEN r.is_ahead = 0 THEN r.attempt - a.attempt END
  FROM sennit_agent AS a
 CROSS JOIN LATERAL (SELECT t.state, t.done_us FROM sennit_task AS t WHERE t.id = a.task_id OFFSET 0) AS t
  LEFT JOIN LATERAL (SELECT r.attempt, r.is_ahead FROM sennit_running AS r WHERE r.id = a.task_id OFFSET 0) AS r ON true
 WHERE a.task_id < :before_id AND a.status NOT IN ('done', 'failed') AND t.state = 0
 ORDER BY a.task_id DESC LIMIT :n;

-- instead of 4: see above
SELECT a.info, t.state, t.done_us, CASE WHEN r.is_ahead = 0 THEN r.attempt - a.attempt END
  FROM json_each(?) AS asked
 CROSS JOIN LATERAL (SELECT * FROM sennit_agent AS a WHERE a.task_id = asked.value OFFSET 0) AS a
 CROSS JOIN LATERAL (SELECT t.state, t.done_us FROM sennit_task AS t WHERE t.id = a.task_id OFFSET 0) AS t
  LEFT JOIN LATERAL (SELECT r.attempt, r.is_ahead FROM sennit_running AS r WHERE r.id = a.task_id OFFSET 0) AS r ON true;

-- instead of 5: min() is an aggregate only
SELECT t.handler, a.status, t.state, CASE WHEN r.is_ahead = 0 THEN least(r.attempt - a.attempt, 1) END AS later, count(*)
  FROM sennit_agent AS a CROSS JOIN sennit_task AS t LEFT JOIN sennit_running AS r ON r.id = a.task_id
 WHERE t.id = a.task_id GROUP BY t.handler, a.status, t.state, later;
