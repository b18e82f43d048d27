DROP TABLE workflow_run_attempts;
DROP TABLE workflow_run_steps;
