-- Which runs call an agent, in the order of lists, so that a list of an agent opens no snapshots: that of an agent that
-- nobody called had opened those of all the user's runs. Written by a trigger as a run is created, also by nodes of the
-- release before and by import-v0; no commit touches it. No foreign key: who lists looks at the run itself all the same,
-- so a row whose run is gone is never seen, and a creation has one thing less to check.
-- depends: 0024.checkpoints

CREATE TABLE workflow_run_agents (
    user_id    text NOT NULL,
    agent_id   text NOT NULL,
    created_at timestamptz NOT NULL,
    run_id     uuid NOT NULL,
    PRIMARY KEY (user_id, agent_id, created_at, run_id)
);

-- The agents of a snapshot, each once. No name that a spec or a list may have is longer. What cannot be read, and so never
-- be called, has none: whether it is a run is decided elsewhere.
CREATE FUNCTION agents_of(snapshot json) RETURNS text[] LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN ARRAY(
        SELECT DISTINCT agent
        FROM json_array_elements(snapshot -> 'steps') AS step,
            LATERAL (SELECT step -> 'tool_config' ->> 'agent_id' AS agent) one
        WHERE char_length(agent) <= 255
    );
EXCEPTION WHEN data_exception THEN
    RETURN '{}';
END $$;

CREATE FUNCTION note_agents_of_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO workflow_run_agents (user_id, agent_id, created_at, run_id)
    SELECT r.user_id, agent, r.created_at, r.id
    FROM workflow_runs r CROSS JOIN unnest(agents_of(NEW.snapshot)) AS agent WHERE r.id = NEW.run_id
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- Whoever creates a run just now is waited for, and is in the table before it is read; who comes later fires the trigger.
CREATE TRIGGER workflow_run_specs_agents AFTER INSERT ON workflow_run_specs
    FOR EACH ROW EXECUTE FUNCTION note_agents_of_run();

INSERT INTO workflow_run_agents (user_id, agent_id, created_at, run_id)
SELECT r.user_id, agent, r.created_at, r.id
FROM workflow_runs r JOIN workflow_run_specs s ON s.run_id = r.id CROSS JOIN unnest(agents_of(s.snapshot)) AS agent
ORDER BY 1, 2, 3, 4;
ANALYZE workflow_run_agents;

-- Whoever might read and create runs still may, at once.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT a.privilege_type AS right,
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
        FROM pg_class c, aclexplode(c.relacl) AS a
        WHERE c.oid = 'workflow_run_specs'::regclass AND a.privilege_type IN ('SELECT', 'INSERT')
            AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON workflow_run_agents TO %s', given.right, given.role);
        EXECUTE format('GRANT EXECUTE ON FUNCTION agents_of(json) TO %s', given.role);
    END LOOP;
END $$;
