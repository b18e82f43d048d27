DROP TABLE workflow_run_commands;
