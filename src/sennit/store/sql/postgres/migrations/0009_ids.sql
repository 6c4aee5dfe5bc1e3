-- 0009 ids: a failover that loses commits must not give ids out again.
--
-- Whoever reserves ids on another timeline than the one before skips a million: blocks whose reservation was lost with the
-- old primary are then behind the counter, and the processes that still have them go on without meeting anybody.
-- Source: postgresql.org/docs/current/continuous-archiving.html, "Timelines".
CREATE FUNCTION sennit_reserve(p_n bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $f$
DECLARE line bytea := convert_to(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), 'UTF8'); step bigint := 0; found_ bigint;
BEGIN
  UPDATE sennit_meta SET data = line WHERE name = 'timeline' AND data <> line;
  IF FOUND THEN
    step := 1048576;
  END IF;
  UPDATE sennit_meta SET value = value + step + p_n WHERE name = 'next_id' RETURNING value INTO found_;
  RETURN found_;
END $f$;
INSERT INTO sennit_meta (name, data) VALUES ('timeline', convert_to(substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), 'UTF8'));
