-- worker: a process that joins also says what it must be rung for, a column that SQLite does not need. The move is that of sqlite/worker.sql.

-- instead of 1: whoever joins is rung for everything, until it says for what
INSERT INTO sennit_worker (id, expire_us, lease_us, pid, host, bell, info, hears) VALUES (?, ?, ?, ?, ?, ?, ?, 3);
