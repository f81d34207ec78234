-- A leaf of a partitioned table says whose it is: once it is detached or dropped, no catalog tells.
ALTER TABLE walgate.copied_table
  ADD COLUMN IF NOT EXISTS root text[];   -- schema and name of the partitioned table
