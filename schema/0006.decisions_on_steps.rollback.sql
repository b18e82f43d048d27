ALTER TABLE workflow_run_steps DROP COLUMN note, DROP COLUMN decided_at_ms, DROP COLUMN decided_by;
