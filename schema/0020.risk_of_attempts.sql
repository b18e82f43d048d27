-- Of what risk a call was when it was intended. The commit's rows get a type of their own, since nodes of the release
-- before still send the old one while they are replaced.
-- depends: 0009.commit_rows
ALTER TABLE workflow_run_attempts ADD COLUMN risk text;

CREATE TYPE commit_attempt_of_risk AS (
    run_id uuid, step_index int, attempt int, req_id text, epoch bigint, state text, first_ms bigint,
    intended_ms bigint, ack_ms bigint, deadline_ms bigint, acked_ms bigint, canceling text, cancel_ms bigint,
    retry_ms bigint, tries int, unsent_reason text, unsent_detail text, ended_ms bigint, answered bool, log_bytes int,
    risk text, mark_term bigint, mark_number bigint, arguments text, error text, exit_code bigint, result text,
    log_tail text
);
