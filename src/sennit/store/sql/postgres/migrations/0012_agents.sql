-- 0012 agents: what the running attempt of a task has said last of its coding agent. One row per task, it goes with the task.
-- A note rewrites the row and mostly changes no index of it: a page keeps room for the next version.
CREATE TABLE sennit_agent (
  task_id bigint PRIMARY KEY,
  attempt bigint NOT NULL,
  status  text   NOT NULL,
  is_kept bigint NOT NULL,
  info    bytea  NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX sennit_agent_open ON sennit_agent (task_id) WHERE status NOT IN ('done', 'failed');

-- Notes of attempts that are still held, the last of each task; returns those attempts. Under the shared form of the pen:
-- rows in the order of their ids, and never over one of a later attempt, which may have been stored since this snapshot.
CREATE FUNCTION sennit_note_agents(p_ids bigint[], p_attempts bigint[], p_statuses text[], p_kept bigint[], p_infos bytea[])
RETURNS TABLE (id bigint, attempt bigint) LANGUAGE sql VOLATILE AS $$
  WITH held AS MATERIALIZED (
         SELECT DISTINCT r.id, r.attempt FROM unnest(p_ids, p_attempts) AS i (id, attempt)
          CROSS JOIN LATERAL (SELECT r.id, r.attempt FROM sennit_running AS r
                               WHERE r.id = i.id AND r.attempt = i.attempt OFFSET 0) AS r),
       noted AS (INSERT INTO sennit_agent AS a (task_id, attempt, status, is_kept, info)
                 SELECT DISTINCT ON (s.id) s.id, s.attempt, s.status, s.is_kept, s.info
                   FROM unnest(p_ids, p_attempts, p_statuses, p_kept, p_infos) WITH ORDINALITY
                     AS s (id, attempt, status, is_kept, info, n)
                   JOIN held AS h ON h.id = s.id AND h.attempt = s.attempt ORDER BY s.id, s.n DESC
                 ON CONFLICT (task_id) DO UPDATE
                    SET attempt = excluded.attempt, status = excluded.status, is_kept = excluded.is_kept, info = excluded.info
                  WHERE a.attempt <= excluded.attempt)
  SELECT h.id, h.attempt FROM held AS h
$$;
