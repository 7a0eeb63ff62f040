-- What an easq data file holds (application_id 'easq', user_version 1).
-- An entry's id is stream.id << 53 | index: indexes stay below 2^53, and a stream's entries lie together, in order.

-- `last` is the highest index ever given in the stream: it never goes back, so no index is used twice.
CREATE TABLE stream (
  id    INTEGER PRIMARY KEY,
  name  TEXT NOT NULL UNIQUE,
  last  INTEGER NOT NULL DEFAULT 0,
  ended INTEGER NOT NULL DEFAULT 0
);

-- `tags` is a JSON object; `data` comes last, so that reading order and size touches no overflow page.
CREATE TABLE item (
  id         INTEGER PRIMARY KEY,
  stream     INTEGER NOT NULL,
  priority   INTEGER NOT NULL,
  size       INTEGER NOT NULL,
  request_id TEXT NOT NULL,
  tags       TEXT NOT NULL,
  data       BLOB NOT NULL
);
CREATE INDEX item_request ON item (request_id, stream);

-- Consumer groups that hold, or remember, something.
CREATE TABLE consumer_group (
  stream INTEGER NOT NULL,
  name   TEXT NOT NULL,
  PRIMARY KEY (stream, name)
) WITHOUT ROWID;

-- Entries that the group has committed, or given up, while another group still holds them.
CREATE TABLE committed (
  item     INTEGER NOT NULL,
  name     TEXT NOT NULL,
  given_up INTEGER NOT NULL,
  PRIMARY KEY (item, name)
) WITHOUT ROWID;

-- Idempotency keys in the order they came (`number`), with what they stored; they outlive the entry.
CREATE TABLE idempotency (
  stream     INTEGER NOT NULL,
  key        TEXT NOT NULL,
  number     INTEGER NOT NULL,
  item       INTEGER NOT NULL,
  request_id TEXT NOT NULL,
  digest     BLOB NOT NULL,
  PRIMARY KEY (stream, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_number ON idempotency (stream, number);

-- How often the entry was delivered to the group and failed there, with the last code and reason.
CREATE TABLE touched (
  item       INTEGER NOT NULL,
  name       TEXT NOT NULL,
  deliveries INTEGER NOT NULL,
  failures   INTEGER NOT NULL,
  code       TEXT NOT NULL,
  reason     TEXT NOT NULL,
  PRIMARY KEY (item, name)
) WITHOUT ROWID;
