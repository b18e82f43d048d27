DROP TYPE commit_approval;
DROP TABLE workflow_run_approvals;
