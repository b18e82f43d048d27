DROP INDEX holds_by_time;
ALTER TABLE holds DROP COLUMN by_admin;
DROP TABLE agent_past_owners;
