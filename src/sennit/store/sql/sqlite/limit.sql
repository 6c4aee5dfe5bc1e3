-- limit: the time limits of a task go when they mean nothing any more, so that nobody wakes up for them.
-- Who asks has seen that there are limits at all (end.sql, claim.sql). Both find their rows by the index on id.

DELETE FROM sennit_deadline WHERE id IN (SELECT value FROM json_each(?));

DELETE FROM sennit_deadline WHERE id IN (SELECT value FROM json_each(?)) AND kind = 'queue_timeout';
