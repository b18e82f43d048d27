-- What people want of runs: a committed row before it is acknowledged, one verdict each.
-- depends: 0002.runs

CREATE TABLE workflow_run_commands (
    id              uuid PRIMARY KEY,
    run_id          uuid NOT NULL REFERENCES workflow_runs (id),
    kind            text NOT NULL,
    payload         json NOT NULL DEFAULT '{}',
    seen_seq        bigint,
    issued_by       text NOT NULL,
    idempotency_key text,
    created_at      timestamptz NOT NULL DEFAULT now(),
    applied_seq     bigint,
    verdict         text CHECK (verdict IN ('applied', 'refused')),
    code            text,
    message         text
);

CREATE INDEX workflow_run_commands_open ON workflow_run_commands (run_id, id) WHERE verdict IS NULL;
CREATE INDEX workflow_run_commands_waiting ON workflow_run_commands (created_at) WHERE verdict IS NULL;
