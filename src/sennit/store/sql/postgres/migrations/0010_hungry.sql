-- 0010 hungry: of which queues a process can take tasks.
--
-- One bit for all queues (0006, READY in `hears`) made a task of one queue wake two processes that had room in others.
ALTER TABLE sennit_worker ADD COLUMN hungry text NOT NULL DEFAULT '[]';  -- JSON
