DROP TABLE workflow_run_specs;
DROP TABLE workflow_runs;
DROP FUNCTION refuse_to_leave_the_terminal();
