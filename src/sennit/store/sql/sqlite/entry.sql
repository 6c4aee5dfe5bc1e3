-- entry: may this enter? Read in the transaction that stores the task, so the answer holds across processes.

-- how many wait: bounded counts, so a look costs no more than the bound
SELECT (SELECT count(*) FROM (SELECT 1 FROM sennit_ready WHERE queue = :queue LIMIT :n) AS a)
     + (SELECT count(*) FROM (SELECT 1 FROM sennit_turn WHERE queue = :queue AND held = 0 LIMIT :n) AS b)
     + (SELECT count(*) FROM (SELECT 1 FROM sennit_turn WHERE queue = :queue AND gate_us IS NOT NULL LIMIT :n) AS c);

-- who is shed, of one lane: ready, never started, of lower priority than :priority, the last in the order first
SELECT r.order_us, r.id FROM sennit_ready AS r JOIN sennit_task AS t ON t.id = r.id
 WHERE r.queue = :queue AND r.provider = :provider AND r.route = :route AND r.attempt = 0 AND t.priority > :priority
 ORDER BY r.order_us DESC, r.id DESC LIMIT :n;

-- the latest ends of a queue, among the latest of all
SELECT count(*), min(done_us) FROM
  (SELECT done_us FROM
     (SELECT done_us, queue FROM sennit_task WHERE done_us IS NOT NULL ORDER BY done_us DESC LIMIT :looked_at) AS latest
    WHERE queue = :queue LIMIT :n) AS mine;

-- cached results
SELECT c.task_id, t.state, t.done_us FROM sennit_cache AS c LEFT JOIN sennit_task AS t ON t.id = c.task_id
 WHERE c.handler = ? AND c.key = ?;

INSERT INTO sennit_cache (handler, key, task_id) VALUES (?, ?, ?)
ON CONFLICT (handler, key) DO UPDATE SET task_id = excluded.task_id;

DELETE FROM sennit_cache_tag WHERE handler = ? AND key = ?;

INSERT INTO sennit_cache_tag (tag, handler, key) VALUES (?, ?, ?) ON CONFLICT DO NOTHING;

SELECT handler, key FROM sennit_cache_tag WHERE tag = ?;

DELETE FROM sennit_cache WHERE handler = ? AND key = ?;

-- submits that wait for room
INSERT INTO sennit_blocked (worker_id, queue) VALUES (?, ?) ON CONFLICT DO NOTHING;

DELETE FROM sennit_blocked WHERE worker_id = ? AND queue = ?;

SELECT EXISTS (SELECT 1 FROM sennit_blocked);

-- an urgent task of a lane that was left, looked for near the front only
SELECT EXISTS (SELECT 1 FROM (SELECT id FROM sennit_ready WHERE queue = ? AND provider = ? AND route = ?
                        ORDER BY order_us, id LIMIT 100)
                   AS r JOIN sennit_task AS t ON t.id = r.id WHERE t.priority = 0);

SELECT thread_id, held FROM sennit_turn WHERE id = ?;

SELECT count(*) FROM sennit_turn WHERE thread_id = ? AND seq < (SELECT seq FROM sennit_turn WHERE id = ?);

SELECT queue, order_us, id FROM sennit_ready WHERE id = ?;

-- those of one lane
SELECT count(*) FROM sennit_ready WHERE queue = ? AND (order_us, id) < (?, ?) AND provider = ? AND route = ?;

-- what workers enforce
INSERT INTO sennit_meta (name, value) VALUES ('bounds', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value;

SELECT value FROM sennit_meta WHERE name = 'bounds';
