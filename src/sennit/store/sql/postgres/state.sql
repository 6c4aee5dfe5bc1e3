-- state: the same compare-and-set in one statement, with the types of its parameters written out. The move is that of sqlite/state.sql.

-- instead of 1: a NULL in a SELECT must be told its type
INSERT INTO sennit_state (thread_id, name, version, data, at_us, task_id, operation_id)
SELECT :thread_id::text, :name::text, :expected::bigint + 1, :data::bytea, :now_us::bigint, :task_id::bigint, :operation_id::text
 WHERE coalesce((SELECT max(version) FROM sennit_state WHERE thread_id = :thread_id AND name = :name), 0) = :expected;
