-- The tables that Walgate made here: they get the source's other indexes once they are copied and followed.
CREATE TABLE IF NOT EXISTS walgate.created_table (
  pipeline text NOT NULL,
  oid bigint NOT NULL,                  -- on the source
  schema_name text NOT NULL,            -- here
  table_name text NOT NULL,
  has_indexes boolean NOT NULL DEFAULT false,
  PRIMARY KEY (pipeline, oid)
);
