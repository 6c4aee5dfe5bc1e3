-- prune: each old task is looked at by itself, whatever the statistics say (a subquery with a LIMIT stays one). As NOT EXISTS the
-- planner goes through all tasks, and all agents, for those that hold it up, when it believes that there are none (measured,
-- 15: 90 ms instead of 0.5 ms with 100,000 of each, while everybody waits). The move is that of sqlite/prune.sql.

-- instead of 1: see above
SELECT t.id FROM sennit_task AS t
 WHERE t.done_us < :before_us
   AND (SELECT true FROM sennit_edge AS e JOIN sennit_task AS c ON c.id = e.child
         WHERE e.parent = t.id AND c.state = 0 LIMIT 1) IS NULL
   AND (SELECT true FROM sennit_task AS p WHERE p.id = t.parent_id AND p.state = 0 LIMIT 1) IS NULL
   AND (SELECT true FROM sennit_agent AS a WHERE a.task_id = t.id AND a.is_kept = 1 LIMIT 1) IS NULL
 ORDER BY t.done_us LIMIT :n;
