-- What exactly was to be approved, and who said what of it: a row for each revision, kept for ever. The newest of a step is
-- its approval as it stands. `call` is the frozen call: agent, tool, schema_hash, arguments, timeout_ms; `digest` is over it.
-- depends: 0012.authority

CREATE TABLE workflow_run_approvals (
    run_id            uuid NOT NULL,
    step_index        integer NOT NULL,
    revision          integer NOT NULL,
    state             text NOT NULL CHECK (state IN
        ('open', 'approved', 'rejected', 'expired', 'superseded', 'voided', 'closed')),
    agent_id          text NOT NULL,
    tool_name         text NOT NULL,
    digest            text NOT NULL,
    schema_hash       text,
    arguments         json,
    risk              text NOT NULL,
    requires_approval boolean NOT NULL,
    approvers         text[] NOT NULL,
    terms             json NOT NULL,
    votes             json NOT NULL DEFAULT '[]',
    opened_at_ms      bigint NOT NULL,
    expires_at_ms     bigint,
    expired_at_ms     bigint,
    ended_at_ms       bigint,
    edited_by         text,
    PRIMARY KEY (run_id, step_index, revision)
) WITH (fillfactor = 80);
CREATE INDEX workflow_run_approvals_open ON workflow_run_approvals (opened_at_ms, run_id) WHERE state = 'open';
CREATE INDEX workflow_run_approvals_named ON workflow_run_approvals USING gin (approvers)
    WHERE state = 'open' AND approvers <> '{}';
CREATE INDEX workflow_run_approvals_forced ON workflow_run_approvals (agent_id, opened_at_ms)
    WHERE state = 'open' AND requires_approval;

CREATE TYPE commit_approval AS (
    run_id uuid, step_index int, revision int, state text, agent_id text, tool_name text, digest text, schema_hash text,
    arguments text, risk text, requires_approval boolean, approvers text[], terms text, votes text, opened_at_ms bigint,
    expires_at_ms bigint, expired_at_ms bigint, ended_at_ms bigint, edited_by text
);

-- What waits for approval from before there were revisions is looked at once, and frozen then.
UPDATE workflow_runs SET wake_at = now() WHERE owner IS NULL AND paused_reason = 'awaiting_approval' AND status = 'paused';
