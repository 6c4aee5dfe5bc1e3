-- 0007 fate: every transaction that writes leaves a mark, so that a commit whose answer was lost has a definite fate.
--
-- The number that the server gives a transaction does not say it: after a crash the server gives numbers again that had
-- not reached the disk, and `pg_xact_status` speaks of whoever has them now.
-- A mark is inserted and later deleted, never updated: an old snapshot costs it nothing.

CREATE TABLE sennit_fate (
  writer   bigint NOT NULL,
  number   bigint NOT NULL,
  begun_us bigint,           -- NULL: somebody has asked before there was a mark; now there never will be one
  PRIMARY KEY (writer, number)
);
ALTER TABLE sennit_fate SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

-- Leaves the mark of this transaction; returns its time. Those before it are decided, and nobody asks for them.
CREATE FUNCTION sennit_mark(p_writer bigint, p_number bigint, p_now_us bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $f$
DECLARE now_us bigint := coalesce(p_now_us, sennit_now_us());
BEGIN
  INSERT INTO sennit_fate (writer, number, begun_us) VALUES (p_writer, p_number, now_us);
  IF p_number % 256 = 0 THEN
    DELETE FROM sennit_fate AS f WHERE f.writer = p_writer AND f.number < p_number;
  END IF;
  RETURN now_us;
END $f$;

-- Takes the pen for this transaction, alone or in its shared form, and leaves the mark; returns the time of the transaction.
-- Statistics of tables whose rows live for milliseconds are always stale, so plans are kept to the indexes.
CREATE FUNCTION sennit_begin(p_lock_ms text, p_frozen_ms text, p_sync text, p_now_us bigint, p_alone bigint,
                             p_writer bigint, p_number bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $f$
DECLARE now_us bigint;
BEGIN
  PERFORM set_config('lock_timeout', p_lock_ms, true), set_config('idle_in_transaction_session_timeout', p_frozen_ms, true),
          set_config('synchronous_commit', p_sync, true), set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
  IF p_alone <> 0 THEN
    -- The moves look at a few rows each, through an index that has them in order.
    PERFORM set_config('enable_bitmapscan', 'off', true), set_config('enable_hashjoin', 'off', true),
            set_config('enable_mergejoin', 'off', true), set_config('enable_sort', 'off', true);
    PERFORM pg_advisory_xact_lock(1397640788, 'sennit_task'::regclass::oid::int);
  ELSE
    PERFORM pg_advisory_xact_lock_shared(1397640788, 'sennit_task'::regclass::oid::int);
  END IF;
  now_us := sennit_mark(p_writer, p_number, p_now_us);
  PERFORM set_config('sennit.now_us', now_us::text, true);
  RETURN now_us;
END $f$;
