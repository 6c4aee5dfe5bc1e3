-- pull: takes an open task out of whatever narrow table it is in. One of these deletes one row.

DELETE FROM sennit_running WHERE id = ? RETURNING attempt, failures, crashes, worker_id, started_us;

DELETE FROM sennit_ready WHERE id = ? RETURNING attempt, failures, crashes, NULL, NULL;

DELETE FROM sennit_waiting WHERE id = ? RETURNING attempt, failures, crashes, NULL, NULL;

DELETE FROM sennit_timer WHERE id = ? RETURNING attempt, failures, crashes, NULL, NULL;

DELETE FROM sennit_parked WHERE id = ? RETURNING attempt, failures, crashes, NULL, NULL;
