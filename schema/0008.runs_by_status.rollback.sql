DROP INDEX workflow_runs_by_status;
