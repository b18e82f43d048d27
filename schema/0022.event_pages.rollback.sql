DROP VIEW workflow_run_events;
DROP FUNCTION write_single_event();

-- A page that a node is writing just now is waited for, or it would be dropped unread.
LOCK TABLE workflow_run_single_events, workflow_run_pages IN ACCESS EXCLUSIVE MODE;

-- (It fails, whole, where DEFAULT has single events of a month that got a partition since: move those first.)
-- Back to a row an event: first the partitions that came to be since, then the events of every page.
DO $$
DECLARE
    page record;
BEGIN
    FOR page IN
        SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'workflow_run_pages'::regclass
    LOOP
        EXECUTE format('CREATE TABLE IF NOT EXISTS %I PARTITION OF workflow_run_single_events %s',
                       replace(page.name, 'workflow_run_pages', 'workflow_run_single_events'), page.bound);
    END LOOP;
END $$;
INSERT INTO workflow_run_single_events (run_id, seq, event_type, payload, created_at)
SELECT p.run_id, p.first_seq + e.number - 1, e.told ->> 0, e.told -> 1, p.created_at
FROM workflow_run_pages p CROSS JOIN LATERAL json_array_elements(p.events) WITH ORDINALITY AS e(told, number);

DROP TABLE workflow_run_pages;
DROP TYPE commit_page;

ALTER TABLE workflow_run_single_events RENAME TO workflow_run_events;
ALTER TRIGGER workflow_run_single_events_append_only ON workflow_run_events RENAME TO workflow_run_events_append_only;
DO $$
DECLARE
    of_it record;
BEGIN
    FOR of_it IN
        SELECT c.relname AS name, c.relkind AS kind FROM pg_class c WHERE c.oid IN (
            SELECT relid FROM pg_partition_tree('workflow_run_events'::regclass) UNION ALL
            SELECT relid FROM pg_partition_tree('workflow_run_single_events_pkey'::regclass)
        ) AND c.relname LIKE 'workflow\_run\_single\_events\_%'
    LOOP
        EXECUTE format('ALTER %s %I RENAME TO %I', CASE WHEN of_it.kind IN ('i', 'I') THEN 'INDEX' ELSE 'TABLE' END,
                       of_it.name, replace(of_it.name, 'workflow_run_single_events', 'workflow_run_events'));
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION ensure_event_partitions(ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    first timestamptz := date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
    low   timestamptz;
    high  timestamptz;
    name  text;
    made  integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(7277238001);
    FOR month IN 0..ahead LOOP
        low := (first AT TIME ZONE 'UTC' + make_interval(months => month)) AT TIME ZONE 'UTC';
        high := (first AT TIME ZONE 'UTC' + make_interval(months => month + 1)) AT TIME ZONE 'UTC';
        name := 'workflow_run_events_' || to_char(low AT TIME ZONE 'UTC', 'YYYY_MM');
        IF to_regclass(name) IS NULL THEN
            EXECUTE format('CREATE TABLE %I PARTITION OF workflow_run_events FOR VALUES FROM (%L) TO (%L)',
                           name, uuid_v7_floor(low), uuid_v7_floor(high));
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION ensure_event_partitions(integer) SECURITY DEFINER SET search_path = %I, pg_temp',
                   current_schema());
END $$;
