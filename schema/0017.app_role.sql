-- Nodes may run as a role that owns nothing (`runwarden migrate --app-role`). The one thing that they create at run time,
-- partitions of the log, is made with the rights of its owner then; the search path is fixed, or whoever calls it could
-- put a table of their own in the place of ours.
-- depends: 0004.events

DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION ensure_event_partitions(integer) SECURITY DEFINER SET search_path = %I, pg_temp',
                   current_schema());
END $$;
REVOKE EXECUTE ON FUNCTION ensure_event_partitions(integer) FROM PUBLIC;
