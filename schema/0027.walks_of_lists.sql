-- Lists of a reason (the few runs that failed among many that wait for an approval) and of a workflow and a status go down
-- an index that has both. A reason comes and goes with a status, which is indexed already: no commit of a step, which
-- stays heap-only, pays for it.
-- depends: 0025.agents_of_runs

CREATE INDEX workflow_runs_by_reason ON workflow_runs (user_id, status, paused_reason, created_at DESC, id DESC)
    WHERE paused_reason IS NOT NULL;
CREATE INDEX workflow_runs_by_workflow_and_status ON workflow_runs (workflow_id, status, created_at DESC, id DESC);
DROP INDEX workflow_runs_by_workflow;
