-- lane: ready -> running for tasks that need a permit or a certain worker. The tasks of a queue stand in one lane per
-- provider and route, the plain ones in lane ('', ''); they are taken from the heads of the lanes, in order, so a full
-- provider, or a route for others, costs one look and no scan.
-- Atomic because the transaction holds SQLite's only write lock. The heads are ranges of the primary key of sennit_ready.

-- the next lane of a queue
SELECT provider, route FROM
  (SELECT provider, route FROM sennit_ready WHERE queue = ?1 AND provider = ?2 AND route > ?3 ORDER BY route LIMIT 1) AS near
UNION ALL SELECT provider, route FROM
  (SELECT provider, route FROM sennit_ready WHERE queue = ?1 AND provider > ?2 ORDER BY provider, route LIMIT 1) AS far
LIMIT 1;

-- its first rows
SELECT order_us, id, since_us, NULL FROM sennit_ready WHERE queue = :queue AND provider = :provider AND route = :route
 ORDER BY order_us, id LIMIT :n;

-- the same, and whether a budget of the task is spent (its handler's, its thread's or its own)
SELECT r.order_us, r.id, r.since_us,
       EXISTS (SELECT 1 FROM sennit_budget WHERE scope = 'handler' AND key = t.handler AND is_spent = 1)
    OR EXISTS (SELECT 1 FROM sennit_budget WHERE scope = 'thread' AND key = t.thread_id AND is_spent = 1)
    OR EXISTS (SELECT 1 FROM sennit_budget WHERE scope = 'task' AND key = CAST(t.id AS TEXT) AND is_spent = 1)
  FROM sennit_ready AS r JOIN sennit_task AS t ON t.id = r.id
 WHERE r.queue = :queue AND r.provider = :provider AND r.route = :route
 ORDER BY r.order_us, r.id LIMIT :n;

-- what the worker needs of those that were chosen, in the order in which they were
SELECT r.id, r.order_us, r.attempt + 1, r.failures, r.crashes,
       t.handler, t.payload, t.options, t.thread_id, t.created_us, t.deadline_us, t.parents, t.priority
  FROM json_each(?) AS chosen CROSS JOIN sennit_ready AS r CROSS JOIN sennit_task AS t
 WHERE r.id = chosen.value AND t.id = r.id;

INSERT INTO sennit_running (id, attempt, failures, crashes, worker_id, queue, order_us, started_us)
SELECT r.id, r.attempt + 1, r.failures, r.crashes, :worker_id, r.queue, r.order_us, :now_us
  FROM json_each(:chosen) AS chosen CROSS JOIN sennit_ready AS r WHERE r.id = chosen.value;

DELETE FROM sennit_ready WHERE id IN (SELECT value FROM json_each(?));

-- the queues that have tasks of a provider: the next pair after this one
SELECT provider, queue FROM sennit_ready
 WHERE provider <> '' AND (provider, queue) > (?, ?) ORDER BY provider, queue LIMIT 1;

-- since when a lane is held back, and for what
SELECT reason, since_us FROM sennit_held WHERE lane = ?;

INSERT INTO sennit_held (lane, reason, since_us) VALUES (?, ?, ?)
ON CONFLICT (lane) DO UPDATE SET reason = excluded.reason;

DELETE FROM sennit_held WHERE lane = ?;

SELECT EXISTS (SELECT 1 FROM sennit_ready WHERE provider = ? AND provider <> '');
