-- Who may let which tools run, and what an admin has to say about them. Every change raises one version, in the same
-- transaction: a commit that intends a call names the version it was decided by, and is refused when another stands.
-- depends: 0002.runs

CREATE TABLE authority_version (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint NOT NULL
);
INSERT INTO authority_version (version) VALUES (1);

CREATE TABLE agent_bindings (
    agent_id      text PRIMARY KEY CHECK (char_length(agent_id) BETWEEN 1 AND 255),
    owner         text NOT NULL CHECK (char_length(owner) BETWEEN 1 AND 255),
    token_version integer NOT NULL DEFAULT 0,
    bound_by      text NOT NULL,
    bound_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX agent_bindings_by_owner ON agent_bindings (owner, agent_id);

-- `subject` is user:<id> or group:<name>; `tools` are patterns over tool names, * for any text.
CREATE TABLE agent_grants (
    id         uuid PRIMARY KEY,
    agent_id   text NOT NULL REFERENCES agent_bindings (agent_id) ON DELETE CASCADE,
    subject    text NOT NULL CHECK (subject ~ '^(user|group):.' AND char_length(subject) <= 261),
    permission text NOT NULL CHECK (permission IN ('use', 'approve', 'view')),
    tools      text[] NOT NULL DEFAULT '{*}' CHECK (cardinality(tools) BETWEEN 1 AND 100),
    expires_at timestamptz,
    granted_by text NOT NULL,
    granted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX agent_grants_by_agent ON agent_grants (agent_id, id);
CREATE INDEX agent_grants_by_subject ON agent_grants (subject, agent_id);

-- NULL says nothing; of the policies that match a call, the most specific one that says something is heard.
CREATE TABLE tool_policies (
    id                uuid PRIMARY KEY,
    agents            text NOT NULL CHECK (char_length(agents) BETWEEN 1 AND 255),
    tools             text NOT NULL CHECK (char_length(tools) BETWEEN 1 AND 255),
    risk              text CHECK (risk IN ('low', 'medium', 'high')),
    writes            boolean,
    open_world        boolean,
    idempotent        boolean,
    requires_approval boolean,
    denied            boolean,
    note              text,
    set_by            text NOT NULL,
    set_at            timestamptz NOT NULL DEFAULT now(),
    UNIQUE (agents, tools)
);

-- The emergency stop: no call leaves for what is held. A hold stays as evidence once it is released.
CREATE TABLE holds (
    id          uuid PRIMARY KEY,
    scope       text NOT NULL CHECK (scope IN ('everything', 'agent', 'user')),
    target      text NOT NULL DEFAULT '' CHECK ((scope = 'everything') = (target = '')),
    reason      text NOT NULL,
    held_by     text NOT NULL,
    held_at     timestamptz NOT NULL DEFAULT now(),
    released_by text,
    released_at timestamptz
);
CREATE UNIQUE INDEX holds_standing ON holds (scope, target) WHERE released_at IS NULL;

CREATE FUNCTION raise_authority_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE authority_version SET version = version + 1;
    RETURN NULL;
END $$;
CREATE TRIGGER agent_bindings_version AFTER INSERT OR DELETE OR UPDATE OF agent_id, owner ON agent_bindings
    FOR EACH STATEMENT EXECUTE FUNCTION raise_authority_version();
CREATE TRIGGER agent_grants_version AFTER INSERT OR DELETE OR UPDATE ON agent_grants
    FOR EACH STATEMENT EXECUTE FUNCTION raise_authority_version();
CREATE TRIGGER tool_policies_version AFTER INSERT OR DELETE OR UPDATE ON tool_policies
    FOR EACH STATEMENT EXECUTE FUNCTION raise_authority_version();
CREATE TRIGGER holds_version AFTER INSERT OR DELETE OR UPDATE ON holds
    FOR EACH STATEMENT EXECUTE FUNCTION raise_authority_version();

-- As whom a run acts beside its user: {"groups": [...], "admin": bool}, of the token that created it.
ALTER TABLE workflow_run_specs ADD COLUMN principal json;

-- Runs that a hold keeps are looked at when a hold ends.
CREATE INDEX workflow_runs_held ON workflow_runs (id) WHERE paused_reason = 'held';
