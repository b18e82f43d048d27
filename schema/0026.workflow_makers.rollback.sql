DROP TABLE workflow_makers;
