-- What the function's names mean does not depend on who calls it.
ALTER FUNCTION walgate.emit(text, text, text, jsonb) SECURITY INVOKER;
ALTER FUNCTION walgate.emit(text, text, text, jsonb) SET search_path = pg_catalog, pg_temp;
