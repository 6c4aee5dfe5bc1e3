-- 0008 writes: what bodies change in their threads, for many ends in one call. Under the locks of those threads
-- (`sennit_hold_threads`), so that nobody else makes the same version.
-- A write that does not follow on the present version, or repeats an operation, is not plain: SN001.
CREATE FUNCTION sennit_write_states(p_tasks bigint[], p_threads text[], p_names text[], p_expected bigint[], p_data bytea[],
                                    p_operations text[], p_keep bigint) RETURNS void
LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off AS $f$
DECLARE w record; present bigint; old bigint;
BEGIN
  FOR w IN SELECT * FROM unnest(p_tasks, p_threads, p_names, p_expected, p_data, p_operations) WITH ORDINALITY
             AS x (task_id, thread_id, name, expected, data, operation_id, n) ORDER BY x.n
  LOOP
    SELECT s.version INTO present FROM sennit_state AS s
     WHERE s.thread_id = w.thread_id AND s.name = w.name ORDER BY s.version DESC LIMIT 1;
    IF coalesce(present, 0) <> w.expected
       OR EXISTS (SELECT 1 FROM sennit_state AS s
                   WHERE s.thread_id = w.thread_id AND s.name = w.name AND s.operation_id = w.operation_id) THEN
      RAISE EXCEPTION 'a write does not follow on the present version' USING ERRCODE = 'SN001';
    END IF;
    INSERT INTO sennit_state (thread_id, name, version, data, at_us, task_id, operation_id)
    VALUES (w.thread_id, w.name, w.expected + 1, w.data, sennit_time(), w.task_id, w.operation_id);
    old := w.expected + 1 - p_keep;
    IF old > 0 THEN
      DELETE FROM sennit_state AS s
       WHERE s.thread_id = w.thread_id AND s.name = w.name AND s.version = old AND s.operation_id IS NULL;
      IF NOT FOUND THEN
        UPDATE sennit_state AS s SET data = NULL WHERE s.thread_id = w.thread_id AND s.name = w.name AND s.version = old;
      END IF;
    END IF;
  END LOOP;
END $f$;
