-- verify: every promise about the rows, each as a query that finds offenders. Read-only.

-- an open task is in exactly one narrow table
SELECT 'task ' || t.id || ' is open and in ' || count(n.id) || ' narrow tables (must be 1)'
  FROM sennit_task AS t
  LEFT JOIN (SELECT id FROM sennit_waiting UNION ALL SELECT id FROM sennit_ready UNION ALL SELECT id FROM sennit_running
             UNION ALL SELECT id FROM sennit_timer UNION ALL SELECT id FROM sennit_parked) AS n ON n.id = t.id
 WHERE t.state = 0 GROUP BY t.id HAVING count(n.id) <> 1 LIMIT 100;

-- a row of a narrow table belongs to an open task
SELECT 'row ' || n.id || ' in ' || n.place || ' belongs to no open task'
  FROM (SELECT id, 'waiting' AS place FROM sennit_waiting UNION ALL SELECT id, 'ready' FROM sennit_ready
        UNION ALL SELECT id, 'running' FROM sennit_running UNION ALL SELECT id, 'timer' FROM sennit_timer
        UNION ALL SELECT id, 'parked' FROM sennit_parked) AS n
  LEFT JOIN sennit_task AS t ON t.id = n.id
 WHERE t.state IS NULL OR t.state <> 0 LIMIT 100;

-- a waiting task counts exactly its open parents, and one more while it waits for its turn or for room
SELECT 'task ' || w.id || ' waits for ' || w.need || ' things, and ' || count(DISTINCT p.id) || ' parents are open'
       || CASE WHEN u.held = 0 THEN ' and its turn has not come' WHEN u.gate_us IS NOT NULL THEN ' and there is no room' ELSE '' END
  FROM sennit_waiting AS w
  LEFT JOIN sennit_edge AS e ON e.child = w.id LEFT JOIN sennit_task AS p ON p.id = e.parent AND p.state = 0
  LEFT JOIN sennit_turn AS u ON u.id = w.id
 GROUP BY w.id, w.need, w.free, u.held, u.gate_us
HAVING w.need <> CASE WHEN w.free = 1 THEN 1 WHEN u.held = 0 THEN count(DISTINCT p.id) + 1 ELSE count(DISTINCT p.id) END
    OR w.need = 0 LIMIT 100;

-- every open task of a thread stands in its line, and nobody else does
SELECT 'task ' || t.id || ' of thread ' || t.thread_id || ' is open and not in its line'
  FROM sennit_task AS t LEFT JOIN sennit_turn AS u ON u.id = t.id AND u.thread_id = t.thread_id
 WHERE t.state = 0 AND t.thread_id IS NOT NULL AND u.id IS NULL
UNION ALL
SELECT 'task ' || u.id || ' is in the line of thread ' || u.thread_id || ' and not open'
  FROM sennit_turn AS u LEFT JOIN sennit_task AS t ON t.id = u.id AND t.state = 0 WHERE t.id IS NULL LIMIT 100;

-- somebody has the turn of a thread, the first in its line
SELECT 'nobody has the turn of thread ' || thread_id FROM sennit_turn AS u
 GROUP BY thread_id HAVING max(held) = 0 LIMIT 100;

-- what is past waiting has the turn
SELECT 'task ' || u.id || ' does not have the turn of its thread and does not wait for it'
  FROM sennit_turn AS u LEFT JOIN sennit_waiting AS w ON w.id = u.id WHERE u.held = 0 AND w.id IS NULL LIMIT 100;

-- an ended task has no open question
SELECT 'question ' || a.id || ' is open, and its task ' || a.task_id || ' is not'
  FROM sennit_ask AS a LEFT JOIN sennit_task AS t ON t.id = a.task_id AND t.state = 0
 WHERE a.state = 'open' AND t.id IS NULL LIMIT 100;

-- the answer of a closed question is a step of its task
SELECT 'question ' || a.id || ' is ' || a.state || ', and task ' || a.task_id || ' has no step for it'
  FROM sennit_ask AS a LEFT JOIN sennit_step AS s ON s.task_id = a.task_id AND s.key = a.key
 WHERE a.state IN ('answered', 'denied', 'expired') AND s.key IS NULL LIMIT 100;

-- versions of a chain have no gap below the present one, but for those that retention has dropped at its old end
SELECT 'thread ' || thread_id || ' has ' || count(*) || ' versions of its ' || name || ' with data, of ' || min(version)
       || ' to ' || max(version)
  FROM sennit_state WHERE data IS NOT NULL GROUP BY thread_id, name
HAVING count(*) <> max(version) - min(version) + 1 LIMIT 100;

-- an ended task has an end, an open one has none
SELECT 'task ' || id || ' has state ' || state || ' and done_us ' || coalesce(CAST(done_us AS TEXT), 'none')
  FROM sennit_task WHERE (state = 0) <> (done_us IS NULL) LIMIT 100;

-- an ended task has no time limits
SELECT 'the ' || d.kind || ' of task ' || d.id || ' is still set, and that task is not open'
  FROM sennit_deadline AS d LEFT JOIN sennit_task AS t ON t.id = d.id AND t.state = 0 WHERE t.id IS NULL LIMIT 100;

-- what runs is held by a worker that is registered
SELECT 'task ' || r.id || ' is held by worker ' || r.worker_id || ', which is not registered'
  FROM sennit_running AS r LEFT JOIN sennit_worker AS w ON w.id = r.worker_id WHERE w.id IS NULL LIMIT 100;

-- the ledger: every ended task was counted once, and nothing is missing
SELECT 'the ledger says ' || l.ended || ' ended, and ' || t.rows || ' rows plus ' || l.pruned || ' pruned are there'
  FROM (SELECT sum(CASE WHEN name IN ('succeeded', 'failed', 'cancelled') THEN n END) AS ended,
               sum(CASE WHEN name = 'pruned' THEN n END) AS pruned FROM sennit_ledger) AS l,
       (SELECT count(*) AS rows FROM sennit_task WHERE done_us IS NOT NULL) AS t
 WHERE l.ended <> t.rows + l.pruned;

SELECT 'the ledger says ' || l.open || ' live, and ' || t.rows || ' are there'
  FROM (SELECT sum(CASE WHEN name = 'submitted' THEN n WHEN name IN ('succeeded', 'failed', 'cancelled') THEN -n END)
               AS open FROM sennit_ledger) AS l,
       (SELECT count(*) AS rows FROM sennit_task WHERE state = 0) AS t
 WHERE l.open <> t.rows;

-- a ready task stands in the lane of its provider and its route
SELECT 'task ' || r.id || ' is ready in lane ''' || r.provider || ' ' || r.route || ''' and it belongs in '''
       || t.provider || ' ' || t.route || ''''
  FROM sennit_ready AS r JOIN sennit_task AS t ON t.id = r.id
 WHERE r.provider <> t.provider OR r.route <> t.route LIMIT 100;

-- the permit of a claim goes with the attempt
SELECT 'task ' || p.id || ' has a permit of ' || p.provider || ', and does not run'
  FROM sennit_permit AS p LEFT JOIN sennit_running AS r ON r.id = p.id
 WHERE p.task_id = p.id AND (r.id IS NULL OR r.worker_id <> p.worker_id) LIMIT 100;

-- a permit, or a request for one, is of a process that is registered: its death frees it
SELECT 'permit ' || p.id || ' of ' || p.provider || ' is of process ' || p.worker_id || ', which is not registered'
  FROM sennit_permit AS p LEFT JOIN sennit_worker AS w ON w.id = p.worker_id WHERE w.id IS NULL LIMIT 100;

-- a permit that is out is known to its provider
SELECT 'permit ' || p.id || ' is out, and provider ' || p.provider || ' is not known'
  FROM sennit_permit AS p LEFT JOIN sennit_provider AS k ON k.name = p.provider
 WHERE p.granted_us IS NOT NULL AND (k.name IS NULL OR p.mark IS NULL) LIMIT 100;

-- a budget that follows from one for each of its kind has the bounds of that
SELECT 'the budget of ' || b.scope || ' ' || b.key || ' follows from none, or has other bounds'
  FROM sennit_budget AS b LEFT JOIN sennit_budget AS base ON base.scope = b.scope AND base.key = ''
 WHERE b.is_own = 0 AND (base.scope IS NULL OR base.tokens_max <> b.tokens_max OR base.cost_nano_max <> b.cost_nano_max) LIMIT 100;

-- what is known of the waits of a task goes with it
SELECT 'waits of task ' || w.id || ' are kept, and the task is not'
  FROM (SELECT task_id AS id FROM sennit_wait UNION SELECT task_id FROM sennit_begun) AS w
  LEFT JOIN sennit_task AS t ON t.id = w.id WHERE t.id IS NULL LIMIT 100;

-- the view of an agent goes with its task
SELECT 'the view of the agent of task ' || a.task_id || ' is kept, and the task is not'
  FROM sennit_agent AS a LEFT JOIN sennit_task AS t ON t.id = a.task_id WHERE t.id IS NULL LIMIT 100;

-- what an agent has said last is of an attempt that has begun
SELECT 'the agent of task ' || a.task_id || ' has spoken in attempt ' || a.attempt || ', and attempt ' || r.attempt || ' runs'
  FROM sennit_agent AS a JOIN sennit_running AS r ON r.id = a.task_id WHERE a.attempt > r.attempt LIMIT 100;
