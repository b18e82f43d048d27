-- Nodes of this release must have ended. What they appended last is written first.
UPDATE workflow_runs SET owner = owner WHERE owner IS NOT NULL AND status = 'running';
DROP TRIGGER workflow_runs_checkpoint ON workflow_runs;
DROP FUNCTION checkpoint_run();
DROP FUNCTION newest_seq(uuid);
DROP VIEW workflow_run_heads;
DROP TYPE commit_run_after;
ALTER TABLE workflow_run_pages DROP COLUMN changes;
