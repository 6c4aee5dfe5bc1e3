-- 0011 ahead: tasks that a process has claimed beyond its slots, and not begun. The index holds only these.
ALTER TABLE sennit_running ADD COLUMN is_ahead bigint NOT NULL DEFAULT 0;
CREATE INDEX sennit_running_ahead ON sennit_running (queue, worker_id, order_us, id) WHERE is_ahead = 1;

-- Replaces that of 0006, which says what the first row is; one more bit: 16 somebody else has claimed tasks of the queue ahead.
--
-- p_ahead is how many tasks are to be held beyond those that begin; -1: none are held. With it, p_n tasks begin that are first in
-- the order, of those held and those ready (moves/ahead.py); the number of those held more than before is `attempt` of the first
-- row, `failures` of it how many of them are urgent, and `crashes` how many were held before. What is held where tasks of the
-- queue need a permit or certain workers has to be given back, which is not plain: SN001.
DROP FUNCTION sennit_claim(bigint, text, bigint);
CREATE FUNCTION sennit_claim(p_worker bigint, p_queue text, p_n bigint, p_ahead bigint DEFAULT -1)
RETURNS TABLE (id bigint, order_us bigint, attempt bigint, failures bigint, crashes bigint, handler text, payload bytea,
               options bytea, thread_id text, created_us bigint, deadline_us bigint, parents bigint, priority bigint,
               results bytea[], keys text[], steps bytea[])
LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $f$
DECLARE now_us bigint := sennit_time(); claimed bigint[]; begun bigint[]; facts bigint := 0; lane record;
        last bigint := 9223372036854775807; wanted bigint := p_n; held bigint := 0; limit_us bigint; urgent bigint := 0;
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
  IF p_ahead >= 0 THEN
    SELECT count(*) INTO held FROM sennit_running AS r
     WHERE r.is_ahead = 1 AND r.queue = p_queue AND r.worker_id = p_worker;
    IF facts & 4 = 4 AND held > 0 THEN
      RAISE EXCEPTION 'what is held ahead is to be given back' USING ERRCODE = 'SN001';
    ELSIF facts & 4 = 0 THEN
      wanted := p_n + greatest(0, p_ahead - held);
      IF held >= p_n AND (held - p_n) * 2 >= p_ahead THEN
        SELECT r.order_us INTO limit_us FROM sennit_running AS r
         WHERE r.is_ahead = 1 AND r.queue = p_queue AND r.worker_id = p_worker
         ORDER BY r.order_us, r.id LIMIT 1 OFFSET p_n - 1;
        IF NOT EXISTS (SELECT 1 FROM sennit_ready AS r
                        WHERE r.queue = p_queue AND r.provider = '' AND r.route = '' AND r.order_us < limit_us) THEN
          wanted := 0;
        END IF;
      END IF;
    END IF;
  END IF;
  IF facts & 1 = 1 AND wanted > 0 THEN
    WITH next AS MATERIALIZED (
           SELECT r.ctid, r.id, r.attempt, r.failures, r.crashes, r.order_us FROM sennit_ready AS r
            WHERE r.queue = p_queue AND r.provider = '' AND r.route = '' AND r.order_us <= last
            ORDER BY r.order_us, r.id LIMIT wanted FOR UPDATE SKIP LOCKED),
         taken AS (DELETE FROM sennit_ready AS r WHERE r.ctid = ANY (ARRAY (SELECT n.ctid FROM next AS n))),
         begun AS (INSERT INTO sennit_running (id, attempt, failures, crashes, worker_id, queue, order_us, is_ahead, started_us)
                   SELECT n.id, n.attempt + 1, n.failures, n.crashes, p_worker, p_queue, n.order_us,
                          CASE WHEN p_ahead < 0 THEN 0 ELSE 1 END, now_us FROM next AS n
                   RETURNING sennit_running.id)
    SELECT array_agg(b.id) INTO claimed FROM begun AS b;
  END IF;
  begun := claimed;
  IF p_ahead >= 0 AND facts & 1 = 1 AND (held > 0 OR claimed IS NOT NULL) THEN
    WITH first AS MATERIALIZED (
           SELECT r.ctid FROM sennit_running AS r
            WHERE r.is_ahead = 1 AND r.queue = p_queue AND r.worker_id = p_worker ORDER BY r.order_us, r.id LIMIT p_n),
         unmarked AS (UPDATE sennit_running AS r SET is_ahead = 0, started_us = now_us
                       WHERE r.ctid = ANY (ARRAY (SELECT f.ctid FROM first AS f)) RETURNING r.id)
    SELECT array_agg(u.id) INTO begun FROM unmarked AS u;
    SELECT count(*) INTO urgent FROM unnest(claimed) AS i (id)
     CROSS JOIN LATERAL (SELECT t.priority FROM sennit_task AS t WHERE t.id = i.id OFFSET 0) AS t
     WHERE t.priority = 0 AND NOT i.id = ANY (begun);
  END IF;
  IF begun IS NOT NULL THEN
    UPDATE sennit_worker AS w SET expire_us = now_us + w.lease_us
     WHERE w.id = p_worker AND w.expire_us < now_us + w.lease_us / 2;
    IF FOUND THEN
      facts := facts + 2;
    END IF;
    IF EXISTS (SELECT 1 FROM sennit_deadline AS d WHERE d.due_us >= 0) THEN
      DELETE FROM sennit_deadline AS d WHERE d.ctid = ANY (ARRAY (
        SELECT d.ctid FROM unnest(begun) AS i (id)
         CROSS JOIN LATERAL (SELECT d.ctid FROM sennit_deadline AS d
                              WHERE d.id = i.id AND d.kind = 'queue_timeout' OFFSET 0) AS d));
    END IF;
  END IF;
  IF EXISTS (SELECT 1 FROM sennit_blocked) THEN
    facts := facts + 8;
  END IF;
  IF coalesce(cardinality(begun), 0) < p_n THEN  -- one IF for both would start the query also when it is not needed
    IF EXISTS (SELECT 1 FROM sennit_running AS r WHERE r.is_ahead = 1 AND r.queue = p_queue AND r.worker_id <> p_worker) THEN
      facts := facts + 16;
    END IF;
  END IF;
  id := NULL;
  order_us := facts;
  attempt := coalesce(cardinality(claimed), 0) - coalesce(cardinality(begun), 0);
  failures := urgent;
  crashes := held;
  RETURN NEXT;
  IF begun IS NOT NULL THEN
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
        FROM unnest(begun) AS i (id)
       CROSS JOIN LATERAL (SELECT * FROM sennit_running AS r WHERE r.id = i.id OFFSET 0) AS r
       CROSS JOIN LATERAL (SELECT * FROM sennit_task AS t WHERE t.id = i.id OFFSET 0) AS t
       ORDER BY r.order_us, r.id;
  END IF;
END $f$;
