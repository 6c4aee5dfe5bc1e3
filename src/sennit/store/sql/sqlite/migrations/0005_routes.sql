-- 0005 routes: what a task needs of its worker, labels and a version of the code; '' is nothing (model.route).

ALTER TABLE sennit_task ADD COLUMN route TEXT NOT NULL DEFAULT '';
CREATE INDEX sennit_task_route ON sennit_task (route, queue) WHERE route > '' AND state = 0;

-- The ready tasks of a queue stand in lanes, one per provider and route. Plain ones are one range, as before.
DROP INDEX sennit_ready_id;
DROP INDEX sennit_ready_provider;
ALTER TABLE sennit_ready RENAME TO sennit_ready_before;
CREATE TABLE sennit_ready (
  queue    TEXT    NOT NULL,
  provider TEXT    NOT NULL DEFAULT '',
  route    TEXT    NOT NULL DEFAULT '',
  order_us INTEGER NOT NULL,               -- model.order: smallest first
  id       INTEGER NOT NULL,
  attempt  INTEGER NOT NULL,
  failures INTEGER NOT NULL,
  crashes  INTEGER NOT NULL,
  since_us INTEGER,                        -- since when it waits here, if it was put back to its old place
  PRIMARY KEY (queue, provider, route, order_us, id)
) WITHOUT ROWID;
INSERT INTO sennit_ready (queue, provider, order_us, id, attempt, failures, crashes, since_us)
SELECT queue, provider, order_us, id, attempt, failures, crashes, since_us FROM sennit_ready_before;
DROP TABLE sennit_ready_before;
CREATE INDEX sennit_ready_id       ON sennit_ready (id);
CREATE INDEX sennit_ready_provider ON sennit_ready (provider, queue) WHERE provider <> '';
