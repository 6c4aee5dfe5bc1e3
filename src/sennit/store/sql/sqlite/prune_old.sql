-- prune old: what belongs to no task and is older than retention: kept signals, and operations remembered without data.

DELETE FROM sennit_signal WHERE at_us < ?;

-- never the present version: its number must not be given again, not even after the thread was forgotten
DELETE FROM sennit_state AS s WHERE data IS NULL AND at_us < ?
   AND version < (SELECT max(version) FROM sennit_state WHERE thread_id = s.thread_id AND name = s.name);
