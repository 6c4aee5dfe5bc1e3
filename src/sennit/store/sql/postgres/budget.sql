-- budget: the two-argument min() of SQLite is least() here, and numbers in it need a type. The move is that of sqlite/budget.sql.

-- instead of 6: min() is an aggregate only
UPDATE sennit_budget SET tokens = least(tokens + ?::bigint, 4000000000000000000),
       cost_nano = least(cost_nano + ?::bigint, 4000000000000000000)
 WHERE scope = ? AND key = ? RETURNING is_spent;
