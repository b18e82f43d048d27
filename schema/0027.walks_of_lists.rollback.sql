CREATE INDEX workflow_runs_by_workflow ON workflow_runs (workflow_id, created_at DESC, id DESC);
DROP INDEX workflow_runs_by_workflow_and_status;
DROP INDEX workflow_runs_by_reason;
