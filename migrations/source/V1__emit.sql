-- Events without any table: a logical message that Walgate publishes when, and only when, the transaction commits.
-- payload is jsonb, so numbers keep all their digits. Whoever may call pg_logical_emit_message, which is everybody,
-- may call this; it gives no right beyond that one.
CREATE OR REPLACE FUNCTION walgate.emit(aggregate_type text, aggregate_id text, type text, payload jsonb)
RETURNS pg_lsn
LANGUAGE plpgsql
VOLATILE
AS $$
BEGIN
  -- What is in the WAL can be mended by nobody: refused while the caller can still do something about it.
  IF $1 IS NULL OR $2 IS NULL OR $3 IS NULL THEN
    RAISE EXCEPTION 'aggregate_type, aggregate_id and type of an event cannot be NULL'
      USING ERRCODE = 'null_value_not_allowed';
  END IF;
  RETURN pg_catalog.pg_logical_emit_message(true, 'walgate.outbox', pg_catalog.jsonb_build_object(
    'aggregate_type', $1, 'aggregate_id', $2, 'type', $3, 'payload', $4)::text);
END
$$;

COMMENT ON FUNCTION walgate.emit(text, text, text, jsonb)
  IS 'Publishes an event when the transaction commits (Walgate)';

GRANT USAGE ON SCHEMA walgate TO PUBLIC;
GRANT EXECUTE ON FUNCTION walgate.emit(text, text, text, jsonb) TO PUBLIC;
