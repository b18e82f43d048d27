-- What lists show and search without opening snapshots, and their order: newest first by time, because imported runs and
-- workflows have random ids. Neither column nor index is touched by a step's commits, so they stay heap-only.
-- depends: 0008.runs_by_status

ALTER TABLE workflow_runs ADD COLUMN title text, ADD COLUMN step_count integer;

UPDATE workflow_runs r SET title = s.snapshot ->> 'title', step_count = json_array_length(s.snapshot -> 'steps')
FROM workflow_run_specs s WHERE s.run_id = r.id;

DROP INDEX workflow_runs_by_user;
DROP INDEX workflow_runs_by_status;
CREATE INDEX workflow_runs_by_user ON workflow_runs (user_id, created_at DESC, id DESC);
CREATE INDEX workflow_runs_by_status ON workflow_runs (user_id, status, created_at DESC, id DESC);
CREATE INDEX workflow_runs_by_workflow ON workflow_runs (workflow_id, created_at DESC, id DESC);

DROP INDEX workflows_by_user;
CREATE INDEX workflows_by_user ON workflows (user_id, created_at DESC, id DESC);
