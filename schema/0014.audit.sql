-- Who decided what, when and from where; also what was refused. Append-only: a trigger refuses the rest to everybody, and
-- `runwarden migrate --app-role` gives the application's role no right to do it.
-- depends: 0005.commands

CREATE TABLE audit_log (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor    text NOT NULL,
    roles    text[] NOT NULL DEFAULT '{}',
    via      text,
    address  text,
    client   text,
    action   text NOT NULL,
    outcome  text NOT NULL CHECK (outcome IN ('applied', 'refused')),
    code     text,
    run_id   uuid,
    owner    text,
    step_id  text,
    agent_id text,
    target   text,
    digest   text,
    comment  text,
    detail   json NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_log_by_time ON audit_log (at, id);
CREATE INDEX audit_log_by_actor ON audit_log (actor, at, id);
CREATE INDEX audit_log_by_run ON audit_log (run_id, at, id) WHERE run_id IS NOT NULL;
CREATE INDEX audit_log_by_agent ON audit_log (agent_id, at, id) WHERE agent_id IS NOT NULL;
CREATE INDEX audit_log_by_owner ON audit_log (owner, at, id) WHERE owner IS NOT NULL;

CREATE FUNCTION refuse_to_rewrite_the_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = '23514';
END $$;
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_rewrite_the_audit();

-- From where a person's word came: {"roles", "groups", "via", "address", "client"}, of the token and its connection.
ALTER TABLE workflow_run_commands ADD COLUMN origin json;
