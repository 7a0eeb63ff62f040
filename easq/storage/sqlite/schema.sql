-- The tables of a data file: layout 2 (application_id 'easq', user_version 2, auto_vacuum INCREMENTAL).
-- An item's id is stream.id << 42 | index: there are 2^21 streams of 2^42 indexes, and a stream's items lie together, in
-- order.

-- `last` is the highest index ever given in the stream: it never goes back, so no index is used twice.
CREATE TABLE stream (
  id    INTEGER PRIMARY KEY,
  name  TEXT NOT NULL UNIQUE,
  last  INTEGER NOT NULL DEFAULT 0,
  ended INTEGER NOT NULL DEFAULT 0
);

-- Settings of a stream that were changed at run time; not used yet.
CREATE TABLE property (
  stream INTEGER NOT NULL,
  name   TEXT NOT NULL,
  value  TEXT NOT NULL,
  PRIMARY KEY (stream, name)
) WITHOUT ROWID;

-- `tags` is a JSON object. `due_ms` is the wall time before which the item is not delivered, `expires_ms` that after
-- which it is no longer delivered. `data` comes last, so that reading the rest touches no overflow page.
CREATE TABLE item (
  id         INTEGER PRIMARY KEY,
  stream     INTEGER NOT NULL,
  priority   INTEGER NOT NULL,
  size       INTEGER NOT NULL,
  due_ms     INTEGER,
  expires_ms INTEGER,
  request_id TEXT NOT NULL,
  tags       TEXT NOT NULL,
  data       BLOB NOT NULL
);
CREATE INDEX item_request ON item (request_id, stream);
CREATE INDEX item_due ON item (stream, due_ms) WHERE due_ms IS NOT NULL;
CREATE INDEX item_expires ON item (stream, expires_ms) WHERE expires_ms IS NOT NULL;

-- Consumer groups that have state. `filter` is a JSON list with one entry for each filter of the group: its
-- tags, the wall time at which its last consumer left (null while one is connected) and, if the service was stopped
-- later, the milliseconds from then to the stop; '' in a file that was migrated from layout 1. `left_ms` is the wall time
-- at which the group's last consumer left, NULL while it has one.
CREATE TABLE consumer_group (
  stream  INTEGER NOT NULL,
  name    TEXT NOT NULL,
  filter  TEXT NOT NULL DEFAULT '',
  left_ms INTEGER,
  PRIMARY KEY (stream, name)
) WITHOUT ROWID;

-- Items that the group has committed or given up, while another group still retains them.
CREATE TABLE committed (
  item     INTEGER NOT NULL,
  name     TEXT NOT NULL,
  given_up INTEGER NOT NULL,
  PRIMARY KEY (item, name)
) WITHOUT ROWID;

-- Idempotency keys in the order they came (`number`), with what they stored; they outlive the item.
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

-- Delivery records: deliveries and failures of the item in the group, with the last code and reason; how many of its
-- connections were lost; and the milliseconds that it has waited for busy consumers since the last failure.
CREATE TABLE touched (
  item       INTEGER NOT NULL,
  name       TEXT NOT NULL,
  deliveries INTEGER NOT NULL,
  failures   INTEGER NOT NULL,
  code       TEXT NOT NULL,
  reason     TEXT NOT NULL,
  losses     INTEGER NOT NULL DEFAULT 0,
  busy_ms    INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (item, name)
) WITHOUT ROWID;
