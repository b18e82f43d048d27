DROP TABLE workflow_run_poison;
