-- The events of one commit are one row, a page: dense from `first_seq` on, all of one moment. That they were five rows
-- cost a fifth of a step's WAL, a twelfth of a commit's time and a sixth of a batch's. What was written a row an event
-- stays as it is, under another name, and what nodes of the release before still write goes there too. The view has the
-- name and the columns that the table had: a row an event, whichever way it was written.
-- depends: 0004.events 0017.app_role 0021.commit_all_or_nothing

-- Names only; no row is read.
ALTER TABLE workflow_run_events RENAME TO workflow_run_single_events;
ALTER TRIGGER workflow_run_events_append_only ON workflow_run_single_events
    RENAME TO workflow_run_single_events_append_only;
DO $$
DECLARE
    of_it record;
BEGIN
    FOR of_it IN
        SELECT c.relname AS name, c.relkind AS kind FROM pg_class c WHERE c.oid IN (
            SELECT relid FROM pg_partition_tree('workflow_run_single_events'::regclass) UNION ALL
            SELECT relid FROM pg_partition_tree('workflow_run_events_pkey'::regclass)
        ) AND c.relname LIKE 'workflow\_run\_events\_%'
    LOOP
        EXECUTE format('ALTER %s %I RENAME TO %I', CASE WHEN of_it.kind IN ('i', 'I') THEN 'INDEX' ELSE 'TABLE' END,
                       of_it.name, replace(of_it.name, 'workflow_run_events', 'workflow_run_single_events'));
    END LOOP;
END $$;

-- `events` is [[event_type, payload], ...]. Two owners that commit from the same state collide at the key,
-- beside the fence; of a page and an old node's single event only the fence takes care.
CREATE TABLE workflow_run_pages (
    run_id     uuid NOT NULL,
    first_seq  bigint NOT NULL,
    events     json NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, first_seq)
) PARTITION BY RANGE (run_id);

-- The months that there are, for runs that have begun and go on, and DEFAULT.
DO $$
DECLARE
    of_it record;
BEGIN
    FOR of_it IN
        SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'workflow_run_single_events'::regclass
    LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF workflow_run_pages %s',
                       replace(of_it.name, 'workflow_run_single_events', 'workflow_run_pages'), of_it.bound);
    END LOOP;
END $$;

CREATE TRIGGER workflow_run_pages_append_only BEFORE UPDATE OR DELETE ON workflow_run_pages
    FOR EACH ROW EXECUTE FUNCTION refuse_to_rewrite_history();

CREATE TYPE commit_page AS (run_id uuid, first_seq bigint, events json, at_ms bigint);

-- As in 0004, of the pages; single events of months to come go to those of their partitions that are there, or DEFAULT.
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
        name := 'workflow_run_pages_' || to_char(low AT TIME ZONE 'UTC', 'YYYY_MM');
        IF to_regclass(name) IS NULL THEN
            EXECUTE format('CREATE TABLE %I PARTITION OF workflow_run_pages FOR VALUES FROM (%L) TO (%L)',
                           name, uuid_v7_floor(low), uuid_v7_floor(high));
            made := made + 1;
        END IF;
    END LOOP;
    RETURN made;
END $$;

-- What is replaced loses these (0017); who may call it stays.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION ensure_event_partitions(integer) SECURITY DEFINER SET search_path = %I, pg_temp',
                   current_schema());
    PERFORM ensure_event_partitions(3);
END $$;

CREATE VIEW workflow_run_events AS
    SELECT run_id, seq, event_type, payload, created_at FROM workflow_run_single_events
    UNION ALL
    SELECT p.run_id, p.first_seq + e.number - 1, e.told ->> 0, e.told -> 1, p.created_at
    FROM workflow_run_pages p CROSS JOIN LATERAL json_array_elements(p.events) WITH ORDINALITY AS e(told, number);

CREATE FUNCTION write_single_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO workflow_run_single_events (run_id, seq, event_type, payload, created_at)
    VALUES (NEW.run_id, NEW.seq, NEW.event_type, NEW.payload, NEW.created_at);
    RETURN NEW;
END $$;

CREATE TRIGGER workflow_run_events_by_old_nodes INSTEAD OF INSERT ON workflow_run_events
    FOR EACH ROW EXECUTE FUNCTION write_single_event();
CREATE TRIGGER workflow_run_events_append_only INSTEAD OF UPDATE OR DELETE ON workflow_run_events
    FOR EACH ROW EXECUTE FUNCTION refuse_to_rewrite_history();

-- Whoever might read and add to the log still may, at once: nodes go on while this is migrated.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT a.privilege_type AS right,
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
        FROM pg_class c, aclexplode(c.relacl) AS a
        WHERE c.oid = 'workflow_run_single_events'::regclass AND a.privilege_type IN ('SELECT', 'INSERT')
            AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON workflow_run_events, workflow_run_pages TO %s', given.right, given.role);
        EXECUTE format('GRANT EXECUTE ON FUNCTION refuse_commit() TO %s', given.role);
    END LOOP;
END $$;
