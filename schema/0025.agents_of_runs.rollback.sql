DROP TRIGGER workflow_run_specs_agents ON workflow_run_specs;
DROP FUNCTION note_agents_of_run();
DROP FUNCTION agents_of(json);
DROP TABLE workflow_run_agents;
