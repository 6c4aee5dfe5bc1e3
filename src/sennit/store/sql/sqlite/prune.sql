-- prune: deletes ended tasks in a small batch, oldest first, by the index on done_us.
-- Keeps one that an open task still needs: as parent (its result is injected) or as child (found again by its key).
-- And one whose agent has a worktree: nobody else knows where that lies, and it is worth more than these rows.
-- The edges to its own dependants stay, so that the others' places do not shift should one of those be revived.

SELECT t.id FROM sennit_task AS t
 WHERE t.done_us < :before_us
   AND NOT EXISTS (SELECT 1 FROM sennit_edge AS e JOIN sennit_task AS c ON c.id = e.child
                    WHERE e.parent = t.id AND c.state = 0)
   AND NOT EXISTS (SELECT 1 FROM sennit_task AS p WHERE p.id = t.parent_id AND p.state = 0)
   AND NOT EXISTS (SELECT 1 FROM sennit_agent AS a WHERE a.task_id = t.id AND a.is_kept = 1)
 ORDER BY t.done_us LIMIT :n;

DELETE FROM sennit_edge WHERE child = ?1;

DELETE FROM sennit_step WHERE task_id = ?1;

DELETE FROM sennit_attempt WHERE task_id = ?1;

DELETE FROM sennit_log WHERE task_id = ?1;

DELETE FROM sennit_ask WHERE task_id = ?1;

DELETE FROM sennit_wait WHERE task_id = ?1;

DELETE FROM sennit_begun WHERE task_id = ?1;

DELETE FROM sennit_agent WHERE task_id = ?1;

DELETE FROM sennit_budget WHERE scope = 'task' AND key = CAST(?1 AS TEXT);

DELETE FROM sennit_cache_tag WHERE (handler, key) IN (SELECT handler, key FROM sennit_cache WHERE task_id = ?1);

DELETE FROM sennit_cache WHERE task_id = ?1;

DELETE FROM sennit_task WHERE id = ?1;
