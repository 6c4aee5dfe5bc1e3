-- pull: takes an open task out of whatever narrow table it is in. One of these deletes one row. What was only claimed ahead
-- ran nowhere: there is nobody to be stopped, and no history.

DELETE FROM sennit_running WHERE id = ?
RETURNING attempt, failures, crashes, CASE WHEN is_ahead = 0 THEN worker_id END, CASE WHEN is_ahead = 0 THEN started_us END;

DELETE FROM sennit_ready WHERE id = ? RETURNING attempt, failures, crashes, NULL, NULL;

DELETE FROM sennit_waiting WHERE id = ? RETURNING attempt, failures, crashes, NULL, NULL;

DELETE FROM sennit_timer WHERE id = ? RETURNING attempt, failures, crashes, NULL, NULL;

DELETE FROM sennit_parked WHERE id = ? RETURNING attempt, failures, crashes, NULL, NULL;
