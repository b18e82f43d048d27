-- The log: append-only, dense seq per run, really unique. Run ids are UUIDv7, so a range of ids is a range of time:
-- one partition a month, and DEFAULT for ids that are not (imported UUIDv4). A replay touches one partition.
-- depends: 0002.runs

CREATE TABLE workflow_run_events (
    run_id     uuid NOT NULL,
    seq        bigint NOT NULL,
    event_type text NOT NULL,
    payload    json NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, seq)
) PARTITION BY RANGE (run_id);

CREATE TABLE workflow_run_events_default PARTITION OF workflow_run_events DEFAULT;

-- The smallest UUIDv7 of a moment: 48 bits of milliseconds (RFC 9562 §5.7), then zeros.
CREATE FUNCTION uuid_v7_floor(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes the partitions of this month and of `ahead` more; answers how many were new. Safe to call from every node.
CREATE FUNCTION ensure_event_partitions(ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
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

-- not SELECT: yoyo prints what a SELECT answers
DO $$ BEGIN PERFORM ensure_event_partitions(3); END $$;

CREATE FUNCTION refuse_to_rewrite_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the event log is append-only' USING ERRCODE = '23514';
END $$;

CREATE TRIGGER workflow_run_events_append_only BEFORE UPDATE OR DELETE ON workflow_run_events
    FOR EACH ROW EXECUTE FUNCTION refuse_to_rewrite_history();
