-- A service's outbox table: what is inserted here is published as it stands, when the transaction commits.
-- Whoever writes needs INSERT on it; nobody needs to read it.
CREATE TABLE IF NOT EXISTS @TABLE@ (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,   -- the header outbox-id
  aggregate_type text NOT NULL,                         -- what the event is about
  aggregate_id text NOT NULL,                           -- which one: the Kafka key, by which events keep their order
  type text NOT NULL,                                   -- the event's type
  payload jsonb,                                        -- its data; NULL: a tombstone, a record without a value
  headers jsonb CHECK (headers IS NULL OR jsonb_typeof(headers) = 'object'),  -- more headers, an object of strings
  topic text,                                           -- NULL: where the rule says
  "timestamp" timestamptz                               -- when it occurred; NULL: when the transaction committed
);
