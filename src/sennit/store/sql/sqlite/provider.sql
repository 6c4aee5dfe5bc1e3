-- provider: what was declared and learnt. A row is read once and written once per transaction that gives or takes a
-- permit; how many are out is counted from their rows, so that the count heals itself.
-- Atomic because the transaction holds SQLite's only write lock.

SELECT spec, state, wake_us FROM sennit_provider WHERE name = ?;

INSERT INTO sennit_provider (name, spec, state, wake_us) VALUES (?, ?, ?, ?)
ON CONFLICT (name) DO UPDATE SET spec = excluded.spec, state = excluded.state, wake_us = excluded.wake_us;

SELECT name FROM sennit_provider ORDER BY name;

-- permits that are out, by model
SELECT model, count(*) FROM sennit_permit WHERE provider = ? AND granted_us IS NOT NULL GROUP BY model;

-- calls and tasks that wait
SELECT (SELECT count(*) FROM sennit_permit WHERE provider = ?1 AND granted_us IS NULL),
       (SELECT count(*) FROM sennit_ready WHERE provider = ?1 AND provider <> '')
     + (SELECT count(*) FROM sennit_ready WHERE provider > CAST(?1 AS TEXT) || '/' AND provider < CAST(?1 AS TEXT) || '0' AND provider <> '');

SELECT name FROM sennit_provider WHERE wake_us <= ? ORDER BY name;

DELETE FROM sennit_provider WHERE name = ?;

-- somebody that was to go to this one has a permit of a fallback
SELECT EXISTS (SELECT 1 FROM sennit_permit WHERE fallback_for = ?1 OR (fallback_for > CAST(?1 AS TEXT) || '/' AND fallback_for < CAST(?1 AS TEXT) || '0'));
