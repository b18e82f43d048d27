DROP TYPE commit_attempt_of_risk;
ALTER TABLE workflow_run_attempts DROP COLUMN risk;
