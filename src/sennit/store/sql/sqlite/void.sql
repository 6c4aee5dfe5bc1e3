-- void: what ends takes its open questions along. The index holds open ones only, so the usual look finds nothing.

SELECT EXISTS (SELECT 1 FROM sennit_ask WHERE state = 'open');

UPDATE sennit_ask SET state = 'void', closed_us = ?, version = version + 1
 WHERE state = 'open' AND task_id IN (SELECT value FROM json_each(?)) RETURNING kind;

UPDATE sennit_meta SET value = value + 1 WHERE name = 'inbox';
