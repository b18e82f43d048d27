-- Lists by status, newest first: the inbox of a person among a million finished runs. A step's commits leave the status
-- as it is, so they stay heap-only.
-- depends: 0002.runs

CREATE INDEX workflow_runs_by_status ON workflow_runs (user_id, status, id DESC);
