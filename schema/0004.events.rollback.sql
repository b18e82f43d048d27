DROP TABLE workflow_run_events;
DROP FUNCTION refuse_to_rewrite_history();
DROP FUNCTION ensure_event_partitions(integer);
DROP FUNCTION uuid_v7_floor(timestamptz);
