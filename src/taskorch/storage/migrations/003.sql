-- The key by which a call that is repeated finds the task that it created; free again some time after that has ended.
CREATE TABLE dedupe_keys(
  key  TEXT PRIMARY KEY,
  task INTEGER NOT NULL UNIQUE REFERENCES tasks(seq) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
