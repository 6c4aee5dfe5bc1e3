-- place: no narrow table -> ready | timer. The last step of submit, release, retry, sleep, fire and rescue.

INSERT INTO sennit_ready (queue, provider, route, order_us, id, attempt, failures, crashes) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

INSERT INTO sennit_timer (due_us, id, attempt, failures, crashes, reason) VALUES (?, ?, ?, ?, ?, ?);

-- at the place it had before; it waits there since now
INSERT INTO sennit_ready (queue, provider, route, order_us, id, attempt, failures, crashes, since_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);
