-- Nodes of this release must have ended. What they appended last is written first. A session may have outlived its node
-- and be about to append: it is waited for, in the order of a commit's locks.
LOCK TABLE workflow_runs IN EXCLUSIVE MODE;
UPDATE workflow_runs SET owner = owner WHERE owner IS NOT NULL AND status = 'running';

-- What no row can take would be lost, and a node of the release before would decide anew what the log tells already.
DO $$
DECLARE
    behind uuid;
BEGIN
    SELECT id INTO behind FROM workflow_run_heads WHERE written_seq < last_seq LIMIT 1;
    IF behind IS NOT NULL THEN
        RAISE EXCEPTION 'the rows of run % are behind its log, and cannot follow it', behind USING
            HINT = 'Mend the changes of its newest pages, or write its rows by hand; nothing has been rolled back.';
    END IF;
END $$;
DROP TRIGGER workflow_runs_checkpoint ON workflow_runs;
DROP FUNCTION checkpoint_run();
DROP FUNCTION newest_seq(uuid);
DROP VIEW workflow_run_heads;
DROP TYPE commit_run_after;
ALTER TABLE workflow_run_pages DROP COLUMN changes;
