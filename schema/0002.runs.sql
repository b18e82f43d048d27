-- The hot row of a run, and beside it what never changes.
-- depends: 0001.workflows

-- `epoch` and `owner` fence every write; `wake_at` and `owner` change only when a run is claimed or let go, so the
-- commits of a step touch no indexed column and stay heap-only (HOT): hence the fill factor.
CREATE TABLE workflow_runs (
    id                 uuid PRIMARY KEY,
    workflow_id        uuid NOT NULL,
    user_id            text NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 255),
    status             text NOT NULL CHECK (status IN ('running', 'paused', 'completed', 'failed', 'canceled')),
    paused_reason      text,
    paused_seq         bigint NOT NULL DEFAULT 0,
    current_step_index integer NOT NULL DEFAULT 0,
    epoch              bigint NOT NULL DEFAULT 0,
    owner              text,
    last_seq           bigint NOT NULL DEFAULT 0,
    wake_at            timestamptz,
    nonce              bytea NOT NULL,
    recoveries         integer NOT NULL DEFAULT 0,
    created_at         timestamptz NOT NULL DEFAULT now(),
    started_at         timestamptz,
    finished_at        timestamptz,
    last_activity_at   timestamptz NOT NULL DEFAULT now(),
    error_code         text,
    error_message      text
) WITH (fillfactor = 70);

CREATE INDEX workflow_runs_by_user ON workflow_runs (user_id, id DESC);
CREATE INDEX workflow_runs_due ON workflow_runs (wake_at) WHERE owner IS NULL AND wake_at IS NOT NULL;
CREATE INDEX workflow_runs_owned ON workflow_runs (id) INCLUDE (owner) WHERE owner IS NOT NULL;

CREATE TABLE workflow_run_specs (
    run_id          uuid PRIMARY KEY REFERENCES workflow_runs (id),
    snapshot        json NOT NULL,
    inputs          json NOT NULL DEFAULT '{}',
    idempotency_key text
);

-- Terminal is for ever. The WHEN clause is evaluated without calling the function, so the hot path pays nothing.
CREATE FUNCTION refuse_to_leave_the_terminal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'run % is % and stays so', OLD.id, OLD.status USING ERRCODE = '23514';
END $$;

CREATE TRIGGER workflow_runs_terminal BEFORE UPDATE ON workflow_runs FOR EACH ROW
    WHEN (OLD.status IN ('completed', 'failed', 'canceled') AND NEW.status IS DISTINCT FROM OLD.status)
    EXECUTE FUNCTION refuse_to_leave_the_terminal();
