-- ahead: what a process has claimed beyond its slots: in sennit_running under its lease, marked, and not begun. The mark goes
-- when it begins, when another process takes it over (steal), or with the row when it is given back.
-- Atomic because the transaction holds SQLite's only write lock. All look at ranges of the partial index
-- sennit_running_ahead (queue, worker_id, order_us, id), which holds only what is marked.

-- how many this process holds; whether tasks of the queue need a permit or a certain worker; whether a ready one stands
-- before the last of those that would begin now; whether any task has a time limit
SELECT (SELECT count(*) FROM sennit_running WHERE is_ahead = 1 AND queue = :queue AND worker_id = :worker_id),
       EXISTS (SELECT 1 FROM sennit_ready WHERE queue = :queue AND provider > '')
    OR EXISTS (SELECT 1 FROM sennit_ready WHERE queue = :queue AND provider = '' AND route > ''),
       EXISTS (SELECT 1 FROM sennit_ready WHERE queue = :queue AND provider = '' AND route = ''
                  AND order_us < (SELECT order_us FROM sennit_running
                                   WHERE is_ahead = 1 AND queue = :queue AND worker_id = :worker_id
                                   ORDER BY order_us, id LIMIT 1 OFFSET :n_before)),
       EXISTS (SELECT 1 FROM sennit_deadline WHERE due_us >= 0);

-- begin: the first of one's own, in order
UPDATE sennit_running SET is_ahead = 0, started_us = :now_us
 WHERE id IN (SELECT s.id FROM sennit_running AS s WHERE s.is_ahead = 1 AND s.queue = :queue AND s.worker_id = :worker_id
               ORDER BY s.order_us, s.id LIMIT :n)
RETURNING id;

-- what the worker needs of those that were chosen
SELECT r.id, r.order_us, r.attempt, r.failures, r.crashes,
       t.handler, t.payload, t.options, t.thread_id, t.created_us, t.deadline_us, t.parents, t.priority
  FROM json_each(?) AS chosen CROSS JOIN sennit_running AS r CROSS JOIN sennit_task AS t
 WHERE r.id = chosen.value AND t.id = r.id;

-- who else holds some of a queue, and how many
SELECT worker_id, count(*) FROM sennit_running
 WHERE is_ahead = 1 AND queue = :queue AND worker_id <> :worker_id GROUP BY worker_id;

-- steal: the first of another's, in order. They begin at once; the attempt, which is the claim token, grows, so whatever is
-- still said under the old one is refused.
UPDATE sennit_running SET worker_id = :worker_id, attempt = attempt + 1, is_ahead = 0, started_us = :now_us
 WHERE id IN (SELECT s.id FROM sennit_running AS s WHERE s.is_ahead = 1 AND s.queue = :queue AND s.worker_id = :victim_id
               ORDER BY s.order_us, s.id LIMIT :n)
RETURNING id;

-- given back
DELETE FROM sennit_running WHERE is_ahead = 1 AND queue = ? AND worker_id = ?
RETURNING id, attempt, failures, crashes, order_us;

-- whether one of these that this process holds is urgent: it waits for a slot, as one that is ready
SELECT EXISTS (SELECT 1 FROM sennit_running AS r CROSS JOIN sennit_task AS t
                WHERE r.is_ahead = 1 AND r.queue = ? AND r.worker_id = ? AND t.id = r.id AND t.priority = 0);
