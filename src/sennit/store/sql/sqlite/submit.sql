-- submit: nothing -> waiting | scheduled | ready, a whole batch in one transaction.
-- Each task becomes one wide row, one edge per parent, and one row in the narrow table of its state.
-- Parents are looked up in the same transaction, so none can end between the look and the commit.

INSERT INTO sennit_task (id, handler, queue, priority, thread_id, key, parent_id, child_key, parents,
                         on_parent_failed, payload, options, crashes_max, delay_us, deadline_us, created_us, provider,
                         route)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

INSERT INTO sennit_edge (parent, child, pos) VALUES (?, ?, ?);

INSERT INTO sennit_waiting (id, need) VALUES (?, ?);

INSERT INTO sennit_deadline (due_us, id, kind) VALUES (?, ?, ?);

-- a fan-out: many calls of one handler, with nothing special about them
INSERT INTO sennit_task (id, handler, queue, priority, parents, on_parent_failed, payload, options, crashes_max, delay_us,
                         created_us)
VALUES (?, ?, ?, ?, 0, 'fail', ?, ?, ?, 0, ?);

-- … is one range of ids with one place in the order: as one statement
INSERT INTO sennit_ready (queue, order_us, id, attempt, failures, crashes)
SELECT queue, :place_us, id, 0, 0, 0 FROM sennit_task WHERE id BETWEEN :first AND :last;
