-- A commit in the middle of a run may be its page alone: what it changes of the run's row, steps and attempts stands in
-- the page (`changes`), and is written to the tables by its owner some commits later, or by the trigger below when the
-- run changes hands: a checkpoint. So who claims a run, and who reads one that nobody holds, finds rows as ever.
-- depends: 0022.event_pages 0020.risk_of_attempts

-- In the order of a commit's locks: nodes go on while this is migrated, and would wait for it in a circle.
LOCK TABLE workflow_runs IN SHARE ROW EXCLUSIVE MODE;

-- {"step_index": …, "steps": [StepRow, …], "attempts": [AttemptRow, …]}, by the names of their fields (`daemon/machine`).
ALTER TABLE workflow_run_pages ADD COLUMN changes json;

-- As commit_run of 0009. `page`: the newest page of the run, if it is not in its row yet; else a commit that Postgres
-- has lost would leave a hole in the log.
CREATE TYPE commit_run_after AS (
    run_id uuid, epoch bigint, owner text, expected_seq bigint, page bigint, last_seq bigint, status text,
    paused_reason text, paused_seq bigint, step_index int, at_ms bigint, started_ms bigint, finished_ms bigint,
    error_code text, error_message text
);

-- Runs as their logs say that they stand. `written_seq`: how far row, steps and attempts go.
CREATE VIEW workflow_run_heads AS
    SELECT r.id, r.workflow_id, r.user_id, r.title, r.step_count, r.status, r.paused_reason, r.paused_seq,
        coalesce(newest.step_index, r.current_step_index) AS current_step_index, r.epoch, r.owner,
        coalesce(newest.last_seq, r.last_seq) AS last_seq, r.last_seq AS written_seq, r.created_at, r.started_at,
        r.finished_at, coalesce(newest.created_at, r.last_activity_at) AS last_activity_at, r.error_code,
        r.error_message
    FROM workflow_runs r LEFT JOIN LATERAL (
        SELECT (p.changes ->> 'step_index')::int AS step_index,
            p.first_seq + json_array_length(p.events) - 1 AS last_seq, p.created_at
        FROM workflow_run_pages p WHERE p.run_id = r.id AND p.first_seq > r.last_seq
        ORDER BY p.first_seq DESC LIMIT 1
    ) newest ON true;

-- How far a run's log goes at this moment, asked anew: whoever has waited for a lock of the run is answered what was
-- appended meanwhile, which its own statement does not see.
CREATE FUNCTION newest_seq(run uuid) RETURNS bigint LANGUAGE sql VOLATILE AS
    'SELECT last_seq FROM workflow_run_heads WHERE id = run';

-- Writes as the commit does (`store/commit`), page by page. A page that cannot be written, which no node appends, must not
-- keep the runs of the same statement from being claimed: then the row stays behind, and who claimed it sees that.
CREATE FUNCTION checkpoint_run() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    page record;
BEGIN
    FOR page IN
        SELECT p.first_seq + json_array_length(p.events) - 1 AS last_seq, p.created_at, p.changes
        FROM workflow_run_pages p WHERE p.run_id = NEW.id AND p.first_seq > OLD.last_seq ORDER BY p.first_seq
    LOOP
        IF page.changes IS NULL THEN
            RAISE null_value_not_allowed USING MESSAGE = 'a page does not say what it changes';
        END IF;
        INSERT INTO workflow_run_steps AS s (
            run_id, step_index, step_id, status, attempts, approved_by, approved_at_ms, decided_by, decided_at_ms, note)
        SELECT NEW.id, t.* FROM json_to_recordset(page.changes -> 'steps') AS t (
            step_index int, step_id text, status text, attempts int, approved_by text, approved_at_ms bigint,
            decided_by text, decided_at_ms bigint, note text)
        ON CONFLICT (run_id, step_index) DO UPDATE SET
            status = excluded.status, attempts = excluded.attempts,
            approved_by = excluded.approved_by, approved_at_ms = excluded.approved_at_ms,
            decided_by = excluded.decided_by, decided_at_ms = excluded.decided_at_ms, note = excluded.note;
        INSERT INTO workflow_run_attempts AS a (
            run_id, step_index, attempt, req_id, epoch, state, first_intended_at_ms, intended_at_ms, ack_by_ms,
            deadline_at_ms, acked_at_ms, canceling, cancel_until_ms, retry_at_ms, tries, unsent_reason, unsent_detail,
            ended_at_ms, answered, log_bytes, risk, mark_term, mark_number, arguments, error, exit_code, result,
            log_tail)
        SELECT NEW.id, c.step_index, c.index, c.req_id, c.epoch, c.state, c.first_intended_at, c.intended_at, c.ack_by,
            c.deadline_at, c.acked_at, c.canceling, c.cancel_until, c.retry_at, coalesce(c.tries, 0), c.unsent_reason,
            c.unsent_detail, c.ended_at, coalesce(c.answered, false), coalesce(c.log_bytes, 0), c.risk,
            (c.mark ->> 'term')::bigint, (c.mark ->> 'number')::bigint, coalesce(t.arguments, '{}')::json,
            t.error::json, t.exit_code, t.result::json, coalesce(t.log_tail, '')
        FROM json_to_recordset(page.changes -> 'attempts') AS t (
            attempt json, arguments text, error text, exit_code bigint, result text, log_tail text
        ) CROSS JOIN json_to_record(t.attempt) AS c (
            step_index int, index int, req_id text, state text, epoch bigint, first_intended_at bigint,
            intended_at bigint, ack_by bigint, deadline_at bigint, acked_at bigint, canceling text, cancel_until bigint,
            retry_at bigint, tries int, unsent_reason text, unsent_detail text, ended_at bigint, answered bool,
            log_bytes int, risk text, mark json)
        ON CONFLICT (run_id, step_index, attempt) DO UPDATE SET
            epoch = excluded.epoch, state = excluded.state, intended_at_ms = excluded.intended_at_ms,
            ack_by_ms = excluded.ack_by_ms, deadline_at_ms = excluded.deadline_at_ms,
            acked_at_ms = excluded.acked_at_ms, canceling = excluded.canceling,
            cancel_until_ms = excluded.cancel_until_ms, retry_at_ms = excluded.retry_at_ms, tries = excluded.tries,
            unsent_reason = excluded.unsent_reason, unsent_detail = excluded.unsent_detail,
            ended_at_ms = excluded.ended_at_ms, answered = excluded.answered, log_bytes = excluded.log_bytes,
            risk = excluded.risk, mark_term = excluded.mark_term, mark_number = excluded.mark_number,
            error = coalesce(excluded.error, a.error), exit_code = coalesce(excluded.exit_code, a.exit_code),
            result = coalesce(excluded.result, a.result), log_tail = right(a.log_tail || excluded.log_tail, 8000);
        NEW.last_seq := page.last_seq;
        NEW.current_step_index := (page.changes ->> 'step_index')::int;
        NEW.last_activity_at := page.created_at;
    END LOOP;
    RETURN NEW;
EXCEPTION WHEN data_exception OR integrity_constraint_violation OR program_limit_exceeded THEN
    RAISE WARNING 'the pages of run % cannot be written to its rows: %', NEW.id, SQLERRM;
    NEW.last_seq := OLD.last_seq;
    NEW.current_step_index := OLD.current_step_index;
    NEW.last_activity_at := OLD.last_activity_at;
    RETURN NEW;
END $$;

-- Only what goes on is appended to; a commit does not set the owner. Nodes of the release before fire it too.
CREATE TRIGGER workflow_runs_checkpoint BEFORE UPDATE OF owner ON workflow_runs FOR EACH ROW
    WHEN (OLD.owner IS NOT NULL AND OLD.status = 'running') EXECUTE FUNCTION checkpoint_run();

-- Whoever might read runs still may, at once.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
        FROM pg_class c, aclexplode(c.relacl) AS a
        WHERE c.oid = 'workflow_runs'::regclass AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT SELECT ON workflow_run_heads TO %s', given.role);
        EXECUTE format('GRANT EXECUTE ON FUNCTION newest_seq(uuid) TO %s', given.role);
    END LOOP;
END $$;
