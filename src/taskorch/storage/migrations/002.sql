-- What became of tasks that are no longer stored, so that whoever asks for one is told: the newest, for a while.
CREATE TABLE removed(
  id   TEXT PRIMARY KEY,
  name TEXT,
  at   INTEGER NOT NULL,
  by   TEXT NOT NULL                -- a client's name, empty: its retention ended
) STRICT, WITHOUT ROWID;
CREATE INDEX removed_at ON removed(at);
