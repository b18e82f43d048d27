DROP INDEX workflows_by_user;
CREATE INDEX workflows_by_user ON workflows (user_id, id DESC);
DROP INDEX workflow_runs_by_workflow;
DROP INDEX workflow_runs_by_status;
DROP INDEX workflow_runs_by_user;
CREATE INDEX workflow_runs_by_user ON workflow_runs (user_id, id DESC);
CREATE INDEX workflow_runs_by_status ON workflow_runs (user_id, status, id DESC);
ALTER TABLE workflow_runs DROP COLUMN step_count, DROP COLUMN title;
