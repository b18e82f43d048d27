DROP INDEX workflow_runs_held;
ALTER TABLE workflow_run_specs DROP COLUMN principal;
DROP TABLE holds;
DROP TABLE tool_policies;
DROP TABLE agent_grants;
DROP TABLE agent_bindings;
DROP TABLE authority_version;
DROP FUNCTION raise_authority_version();
