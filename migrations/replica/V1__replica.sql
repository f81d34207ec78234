-- How far each pipeline has come here, in the same transactions as its rows. The script may be run again.
CREATE TABLE IF NOT EXISTS walgate.checkpoint (
  pipeline text PRIMARY KEY,            -- <source.name>.<slot>
  epoch bigint NOT NULL,                -- taken by every process that starts to write; fences the one before
  v int,                                -- version of this form; NULL: nothing is stored yet
  system_identifier text,               -- the source: cluster, timeline, database, slot, options of the stream
  timeline bigint,
  database_oid bigint,
  slot text,
  options text,
  phase text,                           -- pending, snapshot, streaming
  commit_lsn pg_catalog.pg_lsn NOT NULL DEFAULT '0/0',  -- everything at or before (commit_lsn, ordinal) is here
  ordinal bigint NOT NULL DEFAULT 0,
  safe_lsn pg_catalog.pg_lsn NOT NULL DEFAULT '0/0',    -- how far the source may be told "flushed", once this row is durable
  xid bigint NOT NULL DEFAULT 0,        -- the last transaction, and its commit time in microseconds since 2000
  commit_time bigint NOT NULL DEFAULT 0,
  updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
  confirmed_at timestamptz              -- the last synchronous commit, which proved this row durable
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The copy of each table: begun, or done.
CREATE TABLE IF NOT EXISTS walgate.copied_table (
  pipeline text NOT NULL,
  oid bigint NOT NULL,                  -- on the source
  schema_name text NOT NULL,
  table_name text NOT NULL,
  key text[] NOT NULL,
  copied_at pg_catalog.pg_lsn NOT NULL, -- changes of transactions that committed before it are in the copy
  done boolean NOT NULL,
  rows bigint NOT NULL,
  selection text,                       -- what the rule selected when it was copied
  PRIMARY KEY (pipeline, oid)
);

-- Where the replica did not have what the source said, or had what it should not. Kept for 30 days.
CREATE TABLE IF NOT EXISTS walgate.conflict (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  pipeline text NOT NULL,
  relation text NOT NULL,               -- on the source
  kind text NOT NULL,                   -- insert_exists, update_missing, delete_missing
  resolution text NOT NULL,             -- apply, skip
  key json NOT NULL,
  commit_lsn pg_catalog.pg_lsn NOT NULL,
  ordinal bigint NOT NULL,
  replica_row json,                     -- the row that was here, where there was one
  at timestamptz NOT NULL DEFAULT pg_catalog.now()
);
CREATE INDEX IF NOT EXISTS conflict_pipeline ON walgate.conflict (pipeline, id);
