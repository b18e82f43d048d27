-- The rows of the grouped commit as types, so that a batch is five arrays of rows instead of sixty of columns: binding
-- sixty parameters, and a function scan for each, cost more than the rows themselves. Nothing is stored in these.
-- depends: 0006.decisions_on_steps

CREATE TYPE commit_run AS (
    run_id uuid, epoch bigint, owner text, expected_seq bigint, last_seq bigint, status text, paused_reason text,
    paused_seq bigint, step_index int, at_ms bigint, started_ms bigint, finished_ms bigint, error_code text,
    error_message text
);

CREATE TYPE commit_step AS (
    run_id uuid, step_index int, step_id text, status text, attempts int, approved_by text, approved_at_ms bigint,
    decided_by text, decided_at_ms bigint, note text
);

CREATE TYPE commit_attempt AS (
    run_id uuid, step_index int, attempt int, req_id text, epoch bigint, state text, first_ms bigint,
    intended_ms bigint, ack_ms bigint, deadline_ms bigint, acked_ms bigint, canceling text, cancel_ms bigint,
    retry_ms bigint, tries int, unsent_reason text, unsent_detail text, ended_ms bigint, answered bool, log_bytes int,
    mark_term bigint, mark_number bigint, arguments text, error text, exit_code bigint, result text, log_tail text
);

CREATE TYPE commit_event AS (run_id uuid, seq bigint, event_type text, payload text, at_ms bigint);

CREATE TYPE commit_verdict AS (run_id uuid, command_id uuid, applied bool, code text, message text);
