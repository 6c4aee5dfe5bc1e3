-- budget: so much may be spent. Charged with what is reported, asked before a call is begun.
-- Budgets are found by their primary key. The column is_spent follows from the others.

SELECT EXISTS (SELECT 1 FROM sennit_budget);

-- a budget that is spent, of any scope: by the index that holds only those
SELECT EXISTS (SELECT 1 FROM sennit_budget WHERE is_spent = 1);

SELECT handler, thread_id FROM sennit_task WHERE id = ?;

SELECT scope, key, tokens_max, cost_nano_max, on_exceeded, tokens, cost_nano FROM sennit_budget
 WHERE scope = ? AND key = ? AND is_spent = 1;

-- the first charge of something whose kind has a budget each
INSERT INTO sennit_budget (scope, key, tokens_max, cost_nano_max, on_exceeded, is_own)
SELECT scope, ?2, tokens_max, cost_nano_max, on_exceeded, 0 FROM sennit_budget WHERE scope = ?1 AND key = ''
ON CONFLICT DO NOTHING;

-- sums stop growing far above any bound: one that left the integers would be a fraction, or refused
UPDATE sennit_budget SET tokens = min(tokens + ?, 4000000000000000000), cost_nano = min(cost_nano + ?, 4000000000000000000)
 WHERE scope = ? AND key = ? RETURNING is_spent;

INSERT INTO sennit_budget (scope, key, tokens_max, cost_nano_max, on_exceeded) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (scope, key) DO UPDATE SET tokens_max = excluded.tokens_max, cost_nano_max = excluded.cost_nano_max,
  on_exceeded = excluded.on_exceeded, is_own = 1;

-- those that follow from it
UPDATE sennit_budget SET tokens_max = ?, cost_nano_max = ?, on_exceeded = ? WHERE scope = ? AND is_own = 0;

DELETE FROM sennit_budget WHERE scope = ? AND key = ?;

DELETE FROM sennit_budget WHERE scope = ? AND is_own = 0;

SELECT scope, key, tokens_max, cost_nano_max, on_exceeded, tokens, cost_nano FROM sennit_budget
 WHERE CAST(?1 AS TEXT) IS NULL OR scope = ?1 ORDER BY scope, key;

SELECT scope, key, tokens_max, cost_nano_max, on_exceeded, tokens, cost_nano FROM sennit_budget
 WHERE scope = ? AND key = ?;

-- tasks that wait for more
SELECT p.id, t.provider FROM sennit_parked AS p JOIN sennit_task AS t ON t.id = p.id WHERE p.reason = 'budget' ORDER BY p.id;
