ALTER TABLE workflow_run_commands DROP COLUMN origin;
DROP TABLE audit_log;
DROP FUNCTION refuse_to_rewrite_the_audit();
