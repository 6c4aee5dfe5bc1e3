-- 0005 routes: what a task needs of its worker, labels and a version of the code; the columns of sqlite/0005.

ALTER TABLE sennit_task ADD COLUMN route text NOT NULL DEFAULT '';
CREATE INDEX sennit_task_route ON sennit_task (route, queue) WHERE route > '' AND state = 0;

-- The ready tasks of a queue stand in lanes, one per provider and route. Plain ones are one range, as before.
ALTER TABLE sennit_ready ADD COLUMN route text NOT NULL DEFAULT '';
ALTER TABLE sennit_ready DROP CONSTRAINT sennit_ready_pkey, ADD PRIMARY KEY (queue, provider, route, order_us, id);
