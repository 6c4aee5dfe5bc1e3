-- wait: what a task has waited for. Rows are added to by whoever ends a wait; the rest follows from the times of the task.

INSERT INTO sennit_wait (task_id, reason, us, early_us) VALUES (?1, ?2, ?3, ?4)
ON CONFLICT (task_id, reason) DO UPDATE SET us = sennit_wait.us + excluded.us,
  early_us = sennit_wait.early_us + excluded.early_us;

INSERT INTO sennit_begun (task_id, started_us) VALUES (?, ?) ON CONFLICT DO NOTHING;

SELECT reason, us, early_us FROM sennit_wait WHERE task_id = ? ORDER BY reason;

-- created, first start, last end of a parent; NULL for what is not there (yet)
SELECT t.created_us,
       coalesce((SELECT started_us FROM sennit_begun WHERE task_id = t.id),
                (SELECT min(started_us) FROM sennit_attempt WHERE task_id = t.id),
                (SELECT started_us FROM sennit_running WHERE id = t.id AND is_ahead = 0), t.started_us),
       (SELECT max(p.done_us) FROM sennit_edge AS e JOIN sennit_task AS p ON p.id = e.parent WHERE e.child = t.id)
  FROM sennit_task AS t WHERE t.id = ?;
