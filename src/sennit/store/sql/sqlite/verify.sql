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

-- a waiting task counts exactly its open parents
SELECT 'task ' || w.id || ' waits for ' || w.need || ' parents and ' || count(DISTINCT p.id) || ' are open'
  FROM sennit_waiting AS w
  LEFT JOIN sennit_edge AS e ON e.child = w.id LEFT JOIN sennit_task AS p ON p.id = e.parent AND p.state = 0
 GROUP BY w.id HAVING w.need <> count(DISTINCT p.id) OR NOT w.need LIMIT 100;

-- an ended task has an end, an open one has none
SELECT 'task ' || id || ' has state ' || state || ' and done_us ' || coalesce(done_us, 'none')
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
