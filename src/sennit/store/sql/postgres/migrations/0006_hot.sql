-- 0006 hot: submit, claim and finish of plain tasks for a whole batch in one call each, side by side with other writers.
--
-- They run under the shared form of the pen, so they must hold their own against each other (against everything else the
-- pen protects them). The rules, each of which loses or doubles tasks when it is broken (tests/contract/test_postgres_mutants.py):
--   * Claims take rows FOR UPDATE SKIP LOCKED in a MATERIALIZED part: the limit is counted once.
--   * A submit locks the rows of its open parents FOR SHARE, the end of a parent locks its own FOR NO KEY UPDATE, and only a
--     later statement, that is a later snapshot, reads the edges. So either the child counts the parent, or the end sees the child.
--   * Rows of several tasks are locked in the order of their ids, threads before tasks, tasks before what waits.
--   * A thread's line is changed only under the lock of that thread.
-- Whatever the statistics say, each row is found by a look of its own (LATERAL … OFFSET 0: the planner does not see through
-- that) and changed by its place (ctid): of tables that are empty one minute and full the next, every estimate is wrong.
-- What is not plain raises SN001 and changes nothing: the writer runs the batch again, alone.

-- Who must be rung: bit 1 READY (it has free slots), bit 2 DONE (somebody there waits for results).
ALTER TABLE sennit_worker ADD COLUMN hears bigint NOT NULL DEFAULT 0;

-- The handicaps of model.order.
CREATE FUNCTION sennit_handicap_us(priority bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
  $$ SELECT CASE priority WHEN 0 THEN 0 WHEN 1 THEN 15000000 WHEN 2 THEN 60000000 ELSE 600000000 END::bigint $$;

-- The time of this transaction: `sennit_begin` (0007) has set it.
CREATE FUNCTION sennit_time() RETURNS bigint LANGUAGE sql STABLE AS $$ SELECT current_setting('sennit.now_us')::bigint $$;

-- The threads of these tasks and these threads, in one order for everybody.
CREATE FUNCTION sennit_hold_threads(p_tasks bigint[], p_threads text[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $f$
DECLARE h int;
BEGIN
  IF EXISTS (SELECT 1 FROM sennit_turn WHERE gate_us IS NOT NULL) THEN
    RAISE EXCEPTION 'threads wait for room' USING ERRCODE = 'SN001';
  END IF;
  FOR h IN SELECT DISTINCT hashtext(x.thread_id) FROM
             (SELECT t.thread_id FROM unnest(p_tasks) AS i (id)
               CROSS JOIN LATERAL (SELECT t.thread_id FROM sennit_task AS t WHERE t.id = i.id OFFSET 0) AS t
              UNION SELECT unnest(p_threads)) AS x WHERE x.thread_id IS NOT NULL ORDER BY 1
  LOOP
    PERFORM pg_advisory_xact_lock(1397640789, h);
  END LOOP;
END $f$;

-- Tasks that end in this transaction, and parents of tasks that are handed in by it, in one order for everybody.
CREATE FUNCTION sennit_hold_tasks(p_ends bigint[], p_parents bigint[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $f$
DECLARE i bigint;
BEGIN
  FOR i IN SELECT DISTINCT x FROM unnest(p_ends || p_parents) AS x ORDER BY 1
  LOOP
    IF i = ANY (p_ends) THEN
      PERFORM 1 FROM sennit_task AS t WHERE t.id = i FOR NO KEY UPDATE;
    ELSE
      PERFORM 1 FROM sennit_task AS t WHERE t.id = i AND t.state = 0 FOR SHARE;
    END IF;
  END LOOP;
END $f$;

-- Attempts that hand in children, or end with some, must still be held.
CREATE FUNCTION sennit_must_hold(p_ids bigint[], p_attempts bigint[]) RETURNS void LANGUAGE plpgsql VOLATILE AS $f$
BEGIN
  IF EXISTS (SELECT 1 FROM unnest(p_ids, p_attempts) AS i (id, attempt)
              WHERE (SELECT true FROM sennit_running AS r WHERE r.id = i.id AND r.attempt = i.attempt LIMIT 1) IS NULL) THEN
    RAISE EXCEPTION 'an attempt is not held' USING ERRCODE = 'SN001';
  END IF;
END $f$;

-- What is done counts: of one shard, so that processes that commit side by side do not wait for each other.
CREATE FUNCTION sennit_count(p_shard bigint, p_name text, p_n bigint) RETURNS void LANGUAGE sql VOLATILE AS $$
  INSERT INTO sennit_ledger (name, shard, n) VALUES (p_name, p_shard, p_n)
  ON CONFLICT (name, shard) DO UPDATE SET n = sennit_ledger.n + excluded.n
$$;

-- waiting -> ready | scheduled, for tasks that wait for nothing more. Of what is ready: how many (id), in which queue (word),
-- and how many of them want a permit or certain workers (n).
CREATE FUNCTION sennit_go_on(p_ids bigint[]) RETURNS TABLE (what text, id bigint, word text, n bigint)
LANGUAGE sql VOLATILE AS $$
  WITH gone AS (DELETE FROM sennit_waiting AS w WHERE w.ctid = ANY (ARRAY (
                  SELECT w.ctid FROM unnest(p_ids) AS i (id)
                   CROSS JOIN LATERAL (SELECT w.ctid FROM sennit_waiting AS w WHERE w.id = i.id OFFSET 0) AS w))
                RETURNING w.id, w.attempt, w.failures, w.crashes, w.free),
       placed AS (SELECT g.*, t.queue, t.priority, t.provider, t.route, t.delay_us, t.delay_us > 0 AND g.free = 0 AS later
                    FROM gone AS g CROSS JOIN LATERAL (SELECT * FROM sennit_task AS t WHERE t.id = g.id OFFSET 0) AS t),
       timed AS (INSERT INTO sennit_timer (due_us, id, attempt, failures, crashes, reason)
                 SELECT sennit_time() + p.delay_us, p.id, 0, 0, 0, 'delay' FROM placed AS p WHERE p.later RETURNING due_us),
       ready AS (INSERT INTO sennit_ready (queue, provider, route, order_us, id, attempt, failures, crashes)
                 SELECT p.queue, p.provider, p.route, sennit_time() + sennit_handicap_us(p.priority), p.id,
                        p.attempt, p.failures, p.crashes
                   FROM placed AS p WHERE NOT p.later)
  SELECT CASE WHEN p.priority = 0 THEN 'urgent' ELSE 'ready' END, count(*), p.queue,
         count(*) FILTER (WHERE p.provider <> '' OR p.route <> '')
    FROM placed AS p WHERE NOT p.later GROUP BY 1, 3
  UNION ALL SELECT 'due', min(d.due_us), '', 0::bigint FROM timed AS d HAVING count(*) > 0
$$;

-- nothing -> ready, for a fan-out: calls of one handler with nothing special about them, and ids without a gap.
CREATE FUNCTION sennit_submit_range(p_first bigint, p_handler text, p_queue text, p_priority bigint, p_payloads bytea[],
                                    p_options bytea, p_crashes_max bigint, p_shard bigint) RETURNS void
LANGUAGE plpgsql VOLATILE AS $f$
DECLARE now_us bigint := sennit_time(); place_us bigint := now_us + sennit_handicap_us(p_priority);
BEGIN
  INSERT INTO sennit_task (id, handler, queue, priority, parents, on_parent_failed, payload, options, crashes_max, delay_us,
                           created_us)
  SELECT p_first + x.n - 1, p_handler, p_queue, p_priority, 0, 'fail', x.payload, p_options, p_crashes_max, 0, now_us
    FROM unnest(p_payloads) WITH ORDINALITY AS x (payload, n);
  INSERT INTO sennit_ready (queue, order_us, id, attempt, failures, crashes)
  SELECT p_queue, place_us, i, 0, 0, 0 FROM generate_series(p_first, p_first + cardinality(p_payloads) - 1) AS i;
  PERFORM sennit_count(p_shard, 'submitted', cardinality(p_payloads));
END $f$;

-- nothing -> waiting | scheduled | ready. Each array has one entry per task, in an order in which parents come first; the
-- last three one per edge. A child that its parent attempt has handed in before is not stored again: `found` says which.
CREATE FUNCTION sennit_submit(
  p_ids bigint[], p_handlers text[], p_queues text[], p_priorities bigint[], p_threads text[], p_parent_ids bigint[],
  p_child_keys text[], p_policies text[], p_payloads bytea[], p_options bytea[], p_crashes_max bigint[], p_delays bigint[],
  p_deadlines bigint[], p_timeouts bigint[], p_providers text[], p_routes text[],
  p_counts bigint[], p_parents bigint[], p_children bigint[], p_places bigint[], p_shard bigint)
RETURNS TABLE (what text, id bigint, word text, n bigint)
LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $f$
DECLARE now_us bigint := sennit_time(); known bigint[] := '{}'; unknown bigint[]; bad bigint[];
BEGIN
  IF cardinality(array_remove(p_child_keys, NULL)) > 0 THEN
    SELECT coalesce(array_agg(x.id), '{}') INTO known
      FROM unnest(p_ids, p_parent_ids, p_child_keys) AS x (id, parent_id, child_key)
     CROSS JOIN LATERAL (SELECT t.id FROM sennit_task AS t
                          WHERE t.parent_id = x.parent_id AND t.child_key = x.child_key OFFSET 0) AS t;
    IF cardinality(known) > 0 THEN
      RETURN QUERY SELECT 'found'::text, x.id, ''::text, t.id
        FROM unnest(p_ids, p_parent_ids, p_child_keys) AS x (id, parent_id, child_key)
       CROSS JOIN LATERAL (SELECT t.id FROM sennit_task AS t
                            WHERE t.parent_id = x.parent_id AND t.child_key = x.child_key OFFSET 0) AS t;
    END IF;
  END IF;

  INSERT INTO sennit_task (id, handler, queue, priority, thread_id, parent_id, child_key, parents, on_parent_failed, payload,
                           options, crashes_max, delay_us, deadline_us, created_us, provider, route)
  SELECT x.id, x.handler, x.queue, x.priority, x.thread_id, x.parent_id, x.child_key,
         x.parents, x.policy, x.payload, x.options, x.crashes_max, x.delay_us, CASE WHEN x.deadline_us > 0 THEN now_us + x.deadline_us END,
         now_us, x.provider, x.route
    FROM unnest(p_ids, p_handlers, p_queues, p_priorities, p_threads, p_parent_ids, p_child_keys, p_policies, p_payloads,
                p_options, p_crashes_max, p_delays, p_deadlines, p_providers, p_routes, p_counts)
      AS x (id, handler, queue, priority, thread_id, parent_id, child_key, policy, payload, options, crashes_max, delay_us,
            deadline_us, provider, route, parents)
   WHERE x.id <> ALL (known);

  IF cardinality(p_parents) > 0 THEN
    -- The first snapshot: open parents cannot end from here on until this is committed.
    PERFORM 1 FROM (SELECT DISTINCT p.id FROM unnest(p_parents) AS p (id) ORDER BY p.id) AS p
      CROSS JOIN LATERAL (SELECT t.id FROM sennit_task AS t WHERE t.id = p.id AND t.state = 0 OFFSET 0 FOR SHARE) AS l;
    -- The second: those that ended while we waited for their lock have ended.
    SELECT array_agg(DISTINCT p.id ORDER BY p.id) INTO unknown
      FROM unnest(p_parents) AS p (id) WHERE (SELECT true FROM sennit_task AS t WHERE t.id = p.id LIMIT 1) IS NULL;
    SELECT array_agg(p.id) INTO bad
      FROM unnest(p_parents) AS p (id) WHERE (SELECT t.state FROM sennit_task AS t WHERE t.id = p.id LIMIT 1) > 1;
    IF unknown IS NOT NULL OR bad IS NOT NULL THEN
      RAISE EXCEPTION 'a parent is unknown, or has not succeeded' USING ERRCODE = 'SN001';
    END IF;
    INSERT INTO sennit_edge (parent, child, pos)
    SELECT e.parent, e.child, e.pos FROM unnest(p_parents, p_children, p_places) AS e (parent, child, pos)
     WHERE e.child <> ALL (known);
  END IF;

  IF cardinality(array_remove(p_threads, NULL)) > 0 THEN
    INSERT INTO sennit_turn (thread_id, seq, id, queue, held)
    SELECT x.thread_id, coalesce(l.last, 0) + row_number() OVER w, x.id, x.queue,
           CASE WHEN l.last IS NULL AND row_number() OVER w = 1 THEN 1 ELSE 0 END
      FROM unnest(p_ids, p_queues, p_threads) WITH ORDINALITY AS x (id, queue, thread_id, n)
      LEFT JOIN LATERAL (SELECT max(u.seq) AS last FROM sennit_turn AS u WHERE u.thread_id = x.thread_id) AS l ON true
     WHERE x.thread_id IS NOT NULL AND x.id <> ALL (known)
    WINDOW w AS (PARTITION BY x.thread_id ORDER BY x.n);
  END IF;

  INSERT INTO sennit_waiting (id, need)
  SELECT y.id, y.need FROM (
    SELECT x.id, coalesce(o.n, 0) + CASE WHEN u.id IS NULL THEN 0 ELSE 1 END AS need
      FROM unnest(p_ids, p_threads, p_counts) AS x (id, thread_id, parents)
      LEFT JOIN (SELECT e.child, count(DISTINCT e.parent) AS n FROM unnest(p_parents, p_children) AS e (parent, child)
                  WHERE (SELECT t.state FROM sennit_task AS t WHERE t.id = e.parent LIMIT 1) = 0 GROUP BY e.child)
             AS o ON o.child = x.id
      LEFT JOIN LATERAL (SELECT u.id FROM sennit_turn AS u
                          WHERE u.id = x.id AND u.held = 0 AND x.thread_id IS NOT NULL OFFSET 0) AS u ON true
     WHERE x.id <> ALL (known) AND (x.parents > 0 OR x.thread_id IS NOT NULL)) AS y
   WHERE y.need > 0;

  INSERT INTO sennit_timer (due_us, id, attempt, failures, crashes, reason)
  SELECT now_us + x.delay_us, x.id, 0, 0, 0, 'delay' FROM unnest(p_ids, p_delays) AS x (id, delay_us)
   WHERE x.delay_us > 0 AND x.id <> ALL (known) AND (SELECT true FROM sennit_waiting AS w WHERE w.id = x.id LIMIT 1) IS NULL;

  INSERT INTO sennit_ready (queue, provider, route, order_us, id, attempt, failures, crashes)
  SELECT x.queue, x.provider, x.route, now_us + sennit_handicap_us(x.priority), x.id, 0, 0, 0
    FROM unnest(p_ids, p_queues, p_providers, p_routes, p_priorities, p_delays)
      AS x (id, queue, provider, route, priority, delay_us)
   WHERE x.delay_us = 0 AND x.id <> ALL (known) AND (SELECT true FROM sennit_waiting AS w WHERE w.id = x.id LIMIT 1) IS NULL;

  INSERT INTO sennit_deadline (due_us, id, kind)
  SELECT now_us + x.us, x.id, x.kind
    FROM (SELECT d.id, d.us, 'deadline' AS kind FROM unnest(p_ids, p_deadlines) AS d (id, us)
          UNION ALL SELECT d.id, d.us, 'queue_timeout' FROM unnest(p_ids, p_timeouts) AS d (id, us)) AS x
   WHERE x.us > 0 AND x.id <> ALL (known);

  PERFORM sennit_count(p_shard, 'submitted', cardinality(p_ids) - cardinality(known));
  RETURN QUERY
    SELECT CASE WHEN x.priority = 0 THEN 'urgent' ELSE 'ready' END, count(*), x.queue,
           count(*) FILTER (WHERE x.provider <> '' OR x.route <> '')
      FROM unnest(p_ids, p_queues, p_priorities, p_providers, p_routes) AS x (id, queue, priority, provider, route)
     WHERE (SELECT true FROM sennit_ready AS r WHERE r.id = x.id LIMIT 1) AND x.id <> ALL (known) GROUP BY 1, 3
    UNION ALL
    SELECT 'due', min(d.us), '', 0::bigint
      FROM (SELECT now_us + us AS us FROM unnest(p_delays || p_deadlines || p_timeouts) AS us WHERE us > 0) AS d
    HAVING count(*) > 0;
END $f$;

-- running -> succeeded, and what depends on it or has its turn now. `ok` has ended, `cold` is held but is not plain; what is
-- named by neither is not held any more.
CREATE FUNCTION sennit_finish(p_ids bigint[], p_attempts bigint[], p_results bytea[], p_threaded bigint, p_shard bigint)
RETURNS TABLE (what text, id bigint, word text, n bigint)
LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $f$
DECLARE
  now_us bigint := sennit_time();
  ok bigint[]; cold bigint[]; threads text[]; heirs bigint[] := '{}'; free bigint[];
  task_places tid[]; places tid[]; results bytea[]; attempts bigint[]; failed bigint[]; crashed bigint[]; workers bigint[];
  starts bigint[]; parents bigint[]; turns bigint[];
BEGIN
  -- In the order of ids: what is held, where it is, and whether more than its row must be let go.
  WITH held AS MATERIALIZED (
    SELECT h.*, i.result,
           (SELECT true FROM sennit_permit AS p WHERE p.task_id = i.id LIMIT 1)
        OR (SELECT true FROM sennit_ask AS a WHERE a.task_id = i.id AND a.state = 'open' LIMIT 1) AS is_cold
      FROM (SELECT * FROM unnest(p_ids, p_attempts, p_results) AS i (id, attempt, result) ORDER BY i.id) AS i
     CROSS JOIN LATERAL (
       SELECT r.id, t.ctid AS task_place, r.ctid AS place, r.attempt, r.failures, r.crashes, r.worker_id, r.started_us
         FROM sennit_running AS r JOIN sennit_task AS t ON t.id = r.id
        WHERE r.id = i.id AND r.attempt = i.attempt OFFSET 0 FOR UPDATE OF r FOR NO KEY UPDATE OF t) AS h)
  SELECT array_agg(h.id) FILTER (WHERE h.is_cold), array_agg(h.id) FILTER (WHERE h.is_cold IS NOT TRUE),
         array_agg(h.task_place) FILTER (WHERE h.is_cold IS NOT TRUE), array_agg(h.place) FILTER (WHERE h.is_cold IS NOT TRUE),
         array_agg(h.result) FILTER (WHERE h.is_cold IS NOT TRUE), array_agg(h.attempt) FILTER (WHERE h.is_cold IS NOT TRUE),
         array_agg(h.failures) FILTER (WHERE h.is_cold IS NOT TRUE), array_agg(h.crashes) FILTER (WHERE h.is_cold IS NOT TRUE),
         array_agg(h.worker_id) FILTER (WHERE h.is_cold IS NOT TRUE), array_agg(h.started_us) FILTER (WHERE h.is_cold IS NOT TRUE)
    INTO cold, ok, task_places, places, results, attempts, failed, crashed, workers, starts FROM held AS h;
  IF cold IS NOT NULL THEN
    RETURN QUERY SELECT 'cold'::text, x.id, ''::text, 0::bigint FROM unnest(cold) AS x (id);
  END IF;
  IF ok IS NULL THEN
    RETURN;
  END IF;

  UPDATE sennit_task AS t
     SET state = 1, result = x.result, done_us = now_us, attempt = x.attempt, failures = x.failures, crashes = x.crashes,
         worker_id = x.worker_id, started_us = x.started_us
    FROM unnest(task_places, results, attempts, failed, crashed, workers, starts)
      AS x (place, result, attempt, failures, crashes, worker_id, started_us)
   WHERE t.ctid = x.place;
  DELETE FROM sennit_running AS r WHERE r.ctid = ANY (places);
  DELETE FROM sennit_deadline AS d WHERE d.ctid = ANY (ARRAY (
    SELECT d.ctid FROM unnest(ok) AS i (id)
     CROSS JOIN LATERAL (SELECT d.ctid FROM sennit_deadline AS d WHERE d.id = i.id OFFSET 0) AS d));

  IF p_threaded <> 0 THEN
    WITH gone AS (DELETE FROM sennit_turn AS u WHERE u.ctid = ANY (ARRAY (
                    SELECT u.ctid FROM unnest(ok) AS i (id)
                     CROSS JOIN LATERAL (SELECT u.ctid FROM sennit_turn AS u WHERE u.id = i.id OFFSET 0) AS u))
                  RETURNING u.thread_id, u.held)
    SELECT array_agg(DISTINCT g.thread_id) INTO threads FROM gone AS g WHERE g.held = 1;
    WITH first AS MATERIALIZED (
           SELECT u.* FROM unnest(threads) AS h (thread_id)
            CROSS JOIN LATERAL (SELECT u.ctid AS place, u.held FROM sennit_turn AS u
                                 WHERE u.thread_id = h.thread_id ORDER BY u.seq LIMIT 1) AS u),
         turned AS (UPDATE sennit_turn AS u SET held = 1, active = 0, gate_us = NULL FROM first AS f
                     WHERE u.ctid = f.place AND f.held = 0 RETURNING u.id)
    SELECT coalesce(array_agg(x.id), '{}') INTO heirs FROM turned AS x;
  END IF;

  -- A later snapshot than that of the lock above: all children are seen that counted one of these as open.
  WITH less AS MATERIALIZED (
         SELECT x.child AS id, sum(x.parents)::bigint AS parents, sum(x.turns)::bigint AS turns FROM (
           SELECT e.child, count(DISTINCT i.id) AS parents, 0 AS turns FROM unnest(ok) AS i (id)
            CROSS JOIN LATERAL (SELECT e.child FROM sennit_edge AS e WHERE e.parent = i.id OFFSET 0) AS e GROUP BY e.child
           UNION ALL SELECT h, 0, 1 FROM unnest(heirs) AS h) AS x GROUP BY x.child),
       locked AS MATERIALIZED (
         SELECT w.place, l.parents, l.turns FROM (SELECT * FROM less AS l ORDER BY l.id) AS l
          CROSS JOIN LATERAL (SELECT w.ctid AS place FROM sennit_waiting AS w WHERE w.id = l.id OFFSET 0 FOR UPDATE) AS w)
  SELECT array_agg(k.place), array_agg(k.parents), array_agg(k.turns) INTO places, parents, turns FROM locked AS k;
  -- A later one still: a row that somebody else has just counted down is at another place, which that lock told.
  IF places IS NOT NULL THEN
    WITH counted AS (
           UPDATE sennit_waiting AS w
              SET need = w.need - x.turns - CASE WHEN w.free = 0 THEN x.parents ELSE 0 END
             FROM unnest(places, parents, turns) AS x (place, parents, turns) WHERE w.ctid = x.place RETURNING w.id, w.need)
    SELECT array_agg(c.id) INTO free FROM counted AS c WHERE c.need = 0;
  END IF;

  PERFORM sennit_count(p_shard, 'succeeded', cardinality(ok));
  RETURN QUERY SELECT 'ok'::text, x.id, ''::text, 0::bigint FROM unnest(ok) AS x (id);
  IF free IS NOT NULL THEN
    RETURN QUERY SELECT * FROM sennit_go_on(free);
  END IF;
END $f$;

-- Steps of attempts that are still held; returns the tasks of those that are.
CREATE FUNCTION sennit_save_steps(p_ids bigint[], p_attempts bigint[], p_keys text[], p_results bytea[])
RETURNS TABLE (id bigint, attempt bigint) LANGUAGE sql VOLATILE AS $$
  WITH held AS MATERIALIZED (
         SELECT DISTINCT r.id, r.attempt FROM unnest(p_ids, p_attempts) AS i (id, attempt)
          CROSS JOIN LATERAL (SELECT r.id, r.attempt FROM sennit_running AS r
                               WHERE r.id = i.id AND r.attempt = i.attempt OFFSET 0) AS r),
       saved AS (INSERT INTO sennit_step (task_id, key, result)
                 SELECT DISTINCT ON (s.id, s.key) s.id, s.key, s.result
                   FROM unnest(p_ids, p_attempts, p_keys, p_results) WITH ORDINALITY AS s (id, attempt, key, result, n)
                   JOIN held AS h ON h.id = s.id AND h.attempt = s.attempt ORDER BY s.id, s.key, s.n
                 ON CONFLICT DO NOTHING)
  SELECT h.id, h.attempt FROM held AS h
$$;

-- ready -> running: the next plain tasks of a queue. The first row has no id and says, as bits: 1 the worker has a lease,
-- 2 the lease was renewed, 4 tasks of the queue need a permit or certain workers (only what stands before all of them was
-- claimed then), 8 somebody waits for room in a queue.
CREATE FUNCTION sennit_claim(p_worker bigint, p_queue text, p_n bigint)
RETURNS TABLE (id bigint, order_us bigint, attempt bigint, failures bigint, crashes bigint, handler text, payload bytea,
               options bytea, thread_id text, created_us bigint, deadline_us bigint, parents bigint, priority bigint,
               results bytea[], keys text[], steps bytea[])
LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $f$
DECLARE now_us bigint := sennit_time(); claimed bigint[]; facts bigint := 0; lane record; last bigint := 9223372036854775807;
BEGIN
  IF EXISTS (SELECT 1 FROM sennit_worker AS w WHERE w.id = p_worker AND w.bell <> '') THEN
    facts := 1;
  END IF;
  SELECT ''::text AS provider, ''::text AS route, last AS head_us INTO lane;
  LOOP
    SELECT r.provider, r.route, r.order_us AS head_us INTO lane FROM sennit_ready AS r
     WHERE r.queue = p_queue AND (r.provider, r.route) > (lane.provider, lane.route)
     ORDER BY r.provider, r.route, r.order_us LIMIT 1;
    EXIT WHEN NOT FOUND;
    facts := facts | 4;
    last := least(last, lane.head_us - 1);
  END LOOP;
  IF facts & 1 = 1 THEN
    WITH next AS MATERIALIZED (
           SELECT r.ctid, r.id, r.attempt, r.failures, r.crashes, r.order_us FROM sennit_ready AS r
            WHERE r.queue = p_queue AND r.provider = '' AND r.route = '' AND r.order_us <= last
            ORDER BY r.order_us, r.id LIMIT p_n FOR UPDATE SKIP LOCKED),
         taken AS (DELETE FROM sennit_ready AS r WHERE r.ctid = ANY (ARRAY (SELECT n.ctid FROM next AS n))),
         begun AS (INSERT INTO sennit_running (id, attempt, failures, crashes, worker_id, queue, order_us, started_us)
                   SELECT n.id, n.attempt + 1, n.failures, n.crashes, p_worker, p_queue, n.order_us, now_us FROM next AS n
                   RETURNING sennit_running.id)
    SELECT array_agg(b.id) INTO claimed FROM begun AS b;
  END IF;
  IF claimed IS NOT NULL THEN
    UPDATE sennit_worker AS w SET expire_us = now_us + w.lease_us
     WHERE w.id = p_worker AND w.expire_us < now_us + w.lease_us / 2;
    IF FOUND THEN
      facts := facts + 2;
    END IF;
    IF EXISTS (SELECT 1 FROM sennit_deadline AS d WHERE d.due_us >= 0) THEN
      DELETE FROM sennit_deadline AS d WHERE d.ctid = ANY (ARRAY (
        SELECT d.ctid FROM unnest(claimed) AS i (id)
         CROSS JOIN LATERAL (SELECT d.ctid FROM sennit_deadline AS d
                              WHERE d.id = i.id AND d.kind = 'queue_timeout' OFFSET 0) AS d));
    END IF;
  END IF;
  IF EXISTS (SELECT 1 FROM sennit_blocked) THEN
    facts := facts + 8;
  END IF;
  id := NULL;
  order_us := facts;
  RETURN NEXT;
  IF claimed IS NOT NULL THEN
    RETURN QUERY
      SELECT r.id, r.order_us, r.attempt, r.failures, r.crashes, t.handler, t.payload, t.options, t.thread_id, t.created_us,
             t.deadline_us, t.parents, t.priority,
             CASE WHEN t.parents > 0 THEN
               (SELECT array_agg(CASE WHEN p.state = 1 THEN p.result END ORDER BY e.pos)
                  FROM sennit_edge AS e LEFT JOIN sennit_task AS p ON p.id = e.parent WHERE e.child = t.id) END,
             CASE WHEN r.attempt > 1 THEN
               (SELECT array_agg(s.key ORDER BY s.key) FROM sennit_step AS s WHERE s.task_id = t.id) END,
             CASE WHEN r.attempt > 1 THEN
               (SELECT array_agg(s.result ORDER BY s.key) FROM sennit_step AS s WHERE s.task_id = t.id) END
        FROM unnest(claimed) AS i (id)
       CROSS JOIN LATERAL (SELECT * FROM sennit_running AS r WHERE r.id = i.id OFFSET 0) AS r
       CROSS JOIN LATERAL (SELECT * FROM sennit_task AS t WHERE t.id = i.id OFFSET 0) AS t
       ORDER BY r.order_us, r.id;
  END IF;
END $f$;
