GRANT EXECUTE ON FUNCTION ensure_event_partitions(integer) TO PUBLIC;
ALTER FUNCTION ensure_event_partitions(integer) SECURITY INVOKER RESET search_path;
