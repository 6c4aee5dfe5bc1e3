-- turn: the open tasks of a thread wait for each other. The holder of the turn has the smallest seq of its thread, so
-- every question about a thread is one step along the primary key.
-- Atomic because passing the turn on happens in the transaction that ended the holder.

SELECT seq FROM sennit_turn WHERE thread_id = ? ORDER BY seq DESC LIMIT 1;

INSERT INTO sennit_turn (thread_id, seq, id, queue, held) VALUES (?, ?, ?, ?, ?);

SELECT seq, id, held, gate_us IS NOT NULL FROM sennit_turn WHERE thread_id = ? ORDER BY seq LIMIT 1;

DELETE FROM sennit_turn WHERE id IN (SELECT value FROM json_each(?)) RETURNING thread_id, held;

UPDATE sennit_turn SET held = ?, active = 0, gate_us = NULL WHERE id = ?;

UPDATE sennit_turn SET seq = ? WHERE id = ?;

SELECT id FROM sennit_turn WHERE thread_id = ? ORDER BY seq;

-- room: at most :n threads active; those who want it wait at their place in the order
UPDATE sennit_turn SET gate_us = ? WHERE id = ?;

UPDATE sennit_turn SET active = 0 WHERE id = ? AND active = 1;

SELECT EXISTS (SELECT 1 FROM sennit_turn WHERE gate_us IS NOT NULL);

SELECT g.id, g.gate_us, w.attempt, w.failures, w.crashes, g.queue, t.priority, t.provider, t.route
  FROM sennit_turn AS g JOIN sennit_waiting AS w ON w.id = g.id JOIN sennit_task AS t ON t.id = g.id
 WHERE g.gate_us IS NOT NULL
 ORDER BY g.gate_us, g.id
 LIMIT CASE WHEN :n = 0 THEN 1000000000
            WHEN :n > (SELECT count(*) FROM sennit_turn WHERE active = 1)
            THEN :n - (SELECT count(*) FROM sennit_turn WHERE active = 1) ELSE 0 END;

UPDATE sennit_turn SET active = 1, gate_us = NULL WHERE id = ?;
