-- Who ended a step by their word (rejected, skipped, marked done), when, and what they said.
-- depends: 0003.steps_and_attempts

ALTER TABLE workflow_run_steps ADD COLUMN decided_by text, ADD COLUMN decided_at_ms bigint, ADD COLUMN note text;
