-- rescue: running -> ready | failed (poison), all that one dead worker held. What it had claimed ahead has not run: ready.

SELECT id, attempt, failures, crashes, is_ahead, started_us, queue, order_us FROM sennit_running WHERE worker_id = ? ORDER BY id;

DELETE FROM sennit_worker WHERE id = ?;

DELETE FROM sennit_stop WHERE worker_id = ?;
