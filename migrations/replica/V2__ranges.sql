-- Tables that are copied in ranges of their key: which are finished, each with the consistent point of its snapshot.
ALTER TABLE walgate.copied_table ADD COLUMN IF NOT EXISTS ranges text;
