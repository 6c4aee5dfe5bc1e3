-- release: waiting -> ready | scheduled, when the last open parent has ended and its thread's turn has come.
-- Counts down in the transaction that ended the parent; both reads of edges are ranges of their primary key.
-- A parent may stand in a child's list twice and is waited for once: the caller counts pairs.
-- CROSS JOIN fixes the order: with statistics of a nearly empty file the planner would go through all edges.

SELECT e.parent, e.child FROM json_each(?) AS ended CROSS JOIN sennit_edge AS e WHERE e.parent = ended.value;

UPDATE sennit_waiting SET need = need - ? WHERE id = ? AND free = 0 RETURNING need;

-- the same when its turn has come
UPDATE sennit_waiting SET need = need - 1 WHERE id = ? RETURNING need;

DELETE FROM sennit_waiting WHERE id = ? RETURNING attempt, failures, crashes, free;

SELECT queue, priority, thread_id, provider, route, delay_us FROM sennit_task WHERE id = ?;

-- dependants of a parent that did not succeed, with what they want done about it; one may come twice
SELECT e.child, t.on_parent_failed
  FROM sennit_edge AS e JOIN sennit_waiting AS w ON w.id = e.child JOIN sennit_task AS t ON t.id = e.child
 WHERE e.parent = ? AND w.free = 0 ORDER BY e.child;
