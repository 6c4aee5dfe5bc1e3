-- limit: the time limits of a task go when they mean nothing any more, so that nobody wakes up for them.
-- Every end of a task asks the first statement, one look at a mostly empty tree; a claim asks the same with its own
-- first statement. The others find their rows by the index on id.

SELECT EXISTS (SELECT 1 FROM sennit_deadline);

DELETE FROM sennit_deadline WHERE id IN (SELECT value FROM json_each(?));

DELETE FROM sennit_deadline WHERE id IN (SELECT value FROM json_each(?)) AND kind = 'queue_timeout';
