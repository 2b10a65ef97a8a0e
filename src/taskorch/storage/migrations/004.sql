-- Order among tasks, limits, retry policies, schedules, and workers outside of any server.
-- blocked and held are gates of the ready index, like ready itself: what they say is counted from rows.
ALTER TABLE tasks ADD COLUMN blocked INTEGER NOT NULL DEFAULT 0  -- 1: a task that it depends on has not ended
  CHECK (blocked = 0 OR (blocked = 1 AND status = 'waiting' AND ready = 0));
ALTER TABLE tasks ADD COLUMN concurrency_key TEXT;
ALTER TABLE tasks ADD COLUMN held INTEGER NOT NULL DEFAULT 0     -- 1: could run, but its concurrency_key is used up
  CHECK (held = 0 OR (held = 1 AND status = 'waiting' AND ready = 0 AND concurrency_key IS NOT NULL));
ALTER TABLE tasks ADD COLUMN retry TEXT;                         -- JSON object, NULL: the usual policy
ALTER TABLE tasks ADD COLUMN schedule TEXT                       -- JSON object: it never runs, but creates tasks that do
  CHECK (schedule IS NULL OR (ready = 0 AND held = 0 AND status <> 'working'));
ALTER TABLE tasks ADD COLUMN claim_expires_at INTEGER            -- when an outside worker's silence ends its attempt
  CHECK (claim_expires_at IS NULL OR status = 'working');

DROP INDEX tasks_due;
CREATE INDEX tasks_due ON tasks(run_at)
  WHERE status = 'waiting' AND ready = 0 AND paused = 0 AND blocked = 0 AND held = 0 AND run_at IS NOT NULL;
CREATE INDEX tasks_blocked ON tasks(seq) WHERE blocked = 1;
CREATE INDEX tasks_key_held ON tasks(concurrency_key, kind, rank DESC, seq) WHERE held = 1;
CREATE INDEX tasks_key_ready ON tasks(concurrency_key, kind, rank DESC, seq)
  WHERE concurrency_key IS NOT NULL AND ready = 1;
CREATE INDEX tasks_key_working ON tasks(concurrency_key) WHERE concurrency_key IS NOT NULL AND status = 'working';
CREATE INDEX tasks_claim_expiring ON tasks(claim_expires_at) WHERE claim_expires_at IS NOT NULL;
CREATE INDEX tasks_outside ON tasks(kind) WHERE status = 'waiting' AND kind >= 'outside' AND kind < 'outside;';

ALTER TABLE attempts ADD COLUMN worker TEXT;        -- the outside worker that claimed it, when owner is 0
ALTER TABLE attempts ADD COLUMN claim_ms INTEGER;   -- the silence that it asked to be allowed

CREATE TABLE dependencies(
  parent     INTEGER NOT NULL REFERENCES tasks(seq) ON DELETE CASCADE,
  child      INTEGER NOT NULL REFERENCES tasks(seq) ON DELETE CASCADE,
  on_failure TEXT NOT NULL CHECK (on_failure = 'cancel' OR on_failure = 'fail' OR on_failure = 'run'),
  PRIMARY KEY (parent, child),
  CHECK (parent <> child)
) STRICT, WITHOUT ROWID;
CREATE INDEX dependencies_child ON dependencies(child);

-- Which task a schedule created for which time: once, however many servers look.
CREATE TABLE firings(
  schedule INTEGER NOT NULL REFERENCES tasks(seq) ON DELETE CASCADE,
  at       INTEGER NOT NULL,
  task     INTEGER NOT NULL REFERENCES tasks(seq) ON DELETE CASCADE,
  PRIMARY KEY (schedule, at)
) STRICT, WITHOUT ROWID;
CREATE INDEX firings_task ON firings(task);

-- The same events and some more.
CREATE TABLE events_4(
  id     INTEGER PRIMARY KEY,
  task   INTEGER NOT NULL REFERENCES tasks(seq) ON DELETE CASCADE,
  at     INTEGER NOT NULL,
  event  TEXT NOT NULL CHECK (event IN (
    'updated', 'cancel_requested', 'cancelled', 'retried', 'adopted', 'expired', 'dependency_failed', 'fired', 'skipped')),
  by     TEXT NOT NULL,
  detail TEXT
) STRICT;
INSERT INTO events_4(id, task, at, event, by, detail) SELECT id, task, at, event, by, detail FROM events;
DROP TABLE events;
ALTER TABLE events_4 RENAME TO events;
CREATE INDEX events_task ON events(task);
