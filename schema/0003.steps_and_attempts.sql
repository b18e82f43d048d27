-- Written only when they change. No foreign keys: every row is inserted by the fenced commit, which has just locked its
-- run, and the check would cost more than the insert.
-- depends: 0002.runs

CREATE TABLE workflow_run_steps (
    run_id         uuid NOT NULL,
    step_index     integer NOT NULL,
    step_id        text NOT NULL,
    status         text NOT NULL,
    attempts       integer NOT NULL DEFAULT 0,
    approved_by    text,
    approved_at_ms bigint,
    PRIMARY KEY (run_id, step_index)
) WITH (fillfactor = 80);

-- The engine's times are epoch milliseconds of Postgres time, as the machine counts them.
CREATE TABLE workflow_run_attempts (
    run_id               uuid NOT NULL,
    step_index           integer NOT NULL,
    attempt              integer NOT NULL,
    req_id               text NOT NULL UNIQUE,
    epoch                bigint NOT NULL,
    state                text NOT NULL CHECK (state IN
        ('intent', 'sent', 'acked', 'unsent', 'done', 'failed', 'timeout', 'canceled', 'unknown')),
    first_intended_at_ms bigint NOT NULL,
    intended_at_ms       bigint NOT NULL,
    ack_by_ms            bigint NOT NULL,
    deadline_at_ms       bigint NOT NULL,
    acked_at_ms          bigint,
    canceling            text,
    cancel_until_ms      bigint,
    retry_at_ms          bigint,
    tries                integer NOT NULL DEFAULT 0,
    unsent_reason        text,
    unsent_detail        text,
    ended_at_ms          bigint,
    answered             boolean NOT NULL DEFAULT false,
    log_bytes            integer NOT NULL DEFAULT 0,
    mark_term            bigint,
    mark_number          bigint,
    arguments            json NOT NULL DEFAULT '{}',
    error                json,
    exit_code            bigint,
    result               json,
    log_tail             text NOT NULL DEFAULT '',
    PRIMARY KEY (run_id, step_index, attempt)
) WITH (fillfactor = 80);
