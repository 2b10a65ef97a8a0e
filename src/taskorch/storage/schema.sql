-- Version 1. Times are milliseconds since the epoch (UTC). JSON is text.
-- The CHECKs repeat the invariants of rules.py, so that a bug there cannot be saved. They say OR where IN would read
-- better: SQLite builds a small table for each IN at each check, a third of the cost of a whole drain.

CREATE TABLE servers(
  id         INTEGER PRIMARY KEY AUTOINCREMENT,  -- what tasks.owner holds; never reused
  uuid       TEXT NOT NULL UNIQUE,               -- names the lock file
  pid        INTEGER NOT NULL,
  started_at INTEGER NOT NULL,
  version    TEXT NOT NULL,
  kinds      TEXT NOT NULL                       -- JSON array: what it can run
) STRICT;

CREATE TABLE tasks(
  seq                 INTEGER PRIMARY KEY,       -- arrival order
  id                  TEXT NOT NULL,
  name                TEXT,
  kind                TEXT NOT NULL,
  payload             TEXT NOT NULL,
  status              TEXT NOT NULL CHECK (
    status = 'waiting' OR status = 'working' OR status = 'completed' OR status = 'failed' OR status = 'cancelled'),
  priority            INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 2),
  rank                INTEGER NOT NULL,          -- the order of the ready index: priority, raised by ageing
  ready               INTEGER NOT NULL CHECK (ready IN (0, 1)), -- 1: waits and may run now; an index gate, not a truth
  paused              INTEGER NOT NULL CHECK (paused IN (0, 1)),
  attempt             INTEGER NOT NULL CHECK (attempt >= 0),
  max_attempts        INTEGER NOT NULL CHECK (max_attempts >= 1),
  interruptions       INTEGER NOT NULL CHECK (interruptions BETWEEN 0 AND 5),
  owner               INTEGER,
  timeout_seconds     REAL NOT NULL CHECK (timeout_seconds > 0),
  on_server_exit      TEXT NOT NULL CHECK (on_server_exit = 'survive' OR on_server_exit = 'stop'),
  labels              TEXT,                      -- JSON array, NULL when empty
  progress            TEXT,                      -- JSON object
  result              TEXT,                      -- JSON
  error               TEXT,                      -- JSON object: reason, message, exit_code
  run_at              INTEGER,
  expires_at          INTEGER,
  cancel_requested_at INTEGER,
  cancel_reason       TEXT,
  delete_requested    INTEGER NOT NULL CHECK (delete_requested IN (0, 1)),
  created_at          INTEGER NOT NULL,
  updated_at          INTEGER NOT NULL,
  started_at          INTEGER,
  finished_at         INTEGER,
  version             INTEGER NOT NULL CHECK (version >= 1),
  CHECK ((owner IS NOT NULL) = (status = 'working')),
  CHECK ((finished_at IS NULL) = (status = 'waiting' OR status = 'working')),
  CHECK ((result IS NOT NULL) = (status = 'completed')),
  CHECK (error IS NOT NULL OR (status <> 'failed' AND status <> 'cancelled')),
  CHECK (error IS NULL OR (status <> 'working' AND status <> 'completed')),
  CHECK (status = 'waiting' OR (ready = 0 AND paused = 0)),
  CHECK (NOT (ready AND paused)),
  CHECK (attempt >= 1 OR (status <> 'working' AND status <> 'completed')),
  CHECK (attempt <= max_attempts + interruptions),
  CHECK (cancel_requested_at IS NULL OR status <> 'waiting')
) STRICT;

CREATE UNIQUE INDEX tasks_id ON tasks(id);
CREATE INDEX tasks_name ON tasks(name) WHERE name IS NOT NULL;
-- Rows that may run now and no others: a claim walks it and stops at its limit, however much is stored.
CREATE INDEX tasks_ready ON tasks(kind, rank DESC, seq) WHERE ready = 1;
CREATE INDEX tasks_due ON tasks(run_at) WHERE status = 'waiting' AND ready = 0 AND paused = 0 AND run_at IS NOT NULL;
CREATE INDEX tasks_expiring ON tasks(expires_at) WHERE status = 'waiting' AND expires_at IS NOT NULL;
CREATE INDEX tasks_working ON tasks(owner) WHERE status = 'working';

-- One row a start; its end is written into it.
CREATE TABLE attempts(
  task       INTEGER NOT NULL REFERENCES tasks(seq) ON DELETE CASCADE,
  attempt    INTEGER NOT NULL,
  owner      INTEGER NOT NULL,
  started_at INTEGER NOT NULL,
  ended_at   INTEGER,
  outcome    TEXT CHECK (
    outcome = 'completed' OR outcome = 'failed' OR outcome = 'cancelled' OR outcome = 'interrupted'),
  reason     TEXT,
  message    TEXT,
  exit_code  INTEGER,
  PRIMARY KEY (task, attempt),
  CHECK ((ended_at IS NULL) = (outcome IS NULL))
) STRICT, WITHOUT ROWID;

-- Every other change: who made it and why.
CREATE TABLE events(
  id     INTEGER PRIMARY KEY,
  task   INTEGER NOT NULL REFERENCES tasks(seq) ON DELETE CASCADE,
  at     INTEGER NOT NULL,
  event  TEXT NOT NULL CHECK (event IN ('updated', 'cancel_requested', 'cancelled', 'retried', 'adopted', 'expired')),
  by     TEXT NOT NULL,
  detail TEXT
) STRICT;
CREATE INDEX events_task ON events(task);

-- How many tasks there are of each status and priority, so that a count costs the same at a million rows. Kept in
-- the transaction of each change, by rows.keep_counts: triggers did the same at a fifth of the whole drain's cost.
CREATE TABLE counts(
  status   TEXT NOT NULL,
  priority INTEGER NOT NULL,
  tasks    INTEGER NOT NULL DEFAULT 0 CHECK (tasks >= 0),
  PRIMARY KEY (status, priority)
) STRICT, WITHOUT ROWID;
INSERT INTO counts(status, priority)
  SELECT s.value, p.value
    FROM json_each('["waiting", "working", "completed", "failed", "cancelled"]') s, json_each('[0, 1, 2]') p;
