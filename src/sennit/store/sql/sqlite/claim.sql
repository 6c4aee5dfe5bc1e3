-- claim: ready -> running, at most :n rows of one queue, in order.
-- Atomic because the transaction holds SQLite's only write lock: all three statements see the same rows. The first
-- finds them (with what the worker needs), the other two move the whole range at once, however many rows it has.
-- It also says, once and not per row, whether the worker has a lease, whether any task has a time limit, and whether
-- tasks of the queue need a permit or a certain worker (lane.sql), and whether anybody has claimed some of it ahead
-- (ahead.sql): statements more would be a tenth of the time from an idle submit to the commit.
-- Uses the primary key of sennit_ready as a range (guarded by a test on EXPLAIN). Never `(provider, route) > (…)`: SQLite
-- goes through all rows that are equal to find one that is greater (measured, 3.40.1: 22 ms with 200,000 plain tasks).
-- DELETE … RETURNING would be one statement less, but returns rows in no order (measured, 3.40.1).

SELECT r.id, r.order_us, r.attempt + 1, r.failures, r.crashes,
       t.handler, t.payload, t.options, t.thread_id, t.created_us, t.deadline_us, t.parents, t.priority,
       EXISTS (SELECT 1 FROM sennit_worker WHERE id = :worker_id AND bell <> ''),
       EXISTS (SELECT 1 FROM sennit_deadline WHERE due_us >= 0),
       EXISTS (SELECT 1 FROM sennit_ready WHERE queue = :queue AND provider > '')
    OR EXISTS (SELECT 1 FROM sennit_ready WHERE queue = :queue AND provider = '' AND route > ''),
       EXISTS (SELECT 1 FROM sennit_running WHERE is_ahead = 1 AND queue = :queue)
  FROM sennit_ready AS r JOIN sennit_task AS t ON t.id = r.id
 WHERE r.queue = :queue AND r.provider = '' AND r.route = ''
 ORDER BY r.order_us, r.id
 LIMIT :n;

INSERT INTO sennit_running (id, attempt, failures, crashes, worker_id, queue, order_us, started_us, is_ahead)
SELECT id, attempt + 1, failures, crashes, :worker_id, queue, order_us, :now_us, :is_ahead
  FROM sennit_ready
 WHERE queue = :queue AND provider = '' AND route = '' AND (order_us, id) <= (:order_us, :id);

DELETE FROM sennit_ready WHERE queue = :queue AND provider = '' AND route = '' AND (order_us, id) <= (:order_us, :id);

-- results of the parents, in the order of the child's list; one that was pruned keeps its place
SELECT p.state, p.result FROM sennit_edge AS e LEFT JOIN sennit_task AS p ON p.id = e.parent
 WHERE e.child = ? ORDER BY e.pos;

SELECT key, result FROM sennit_step WHERE task_id = ?;

-- the same facts when no plain task was found
SELECT EXISTS (SELECT 1 FROM sennit_worker WHERE id = :worker_id AND bell <> ''),
       EXISTS (SELECT 1 FROM sennit_ready WHERE queue = :queue AND provider > '')
    OR EXISTS (SELECT 1 FROM sennit_ready WHERE queue = :queue AND provider = '' AND route > ''),
       EXISTS (SELECT 1 FROM sennit_running WHERE is_ahead = 1 AND queue = :queue);
