-- Why the stream leaves a table out: reason, remedy, since when, the definitions then. NULL: it does not.
ALTER TABLE walgate.copied_table ADD COLUMN IF NOT EXISTS parked json;
-- What the source's catalog said of the table when it was copied: files and columns.
ALTER TABLE walgate.copied_table ADD COLUMN IF NOT EXISTS shape json;
