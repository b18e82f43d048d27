"""Agents that belong to whoever names them first, and may be used by whoever names them later.

Most tests are about something else than who owns an agent: their databases get a trigger that binds each agent of a
workflow, or of a run made by SQL, to its user. Tests of authority use ``strict_database`` and bind by the API.
"""

from __future__ import annotations

import psycopg

FREE_AGENTS = """
CREATE FUNCTION tests_free_agents(who text, spec json) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    agent text;
BEGIN
    FOR agent IN
        SELECT DISTINCT step -> 'tool_config' ->> 'agent_id' FROM json_array_elements(spec -> 'steps') AS step
    LOOP
        -- Asked first: an INSERT of no row is a new version of the authority, too.
        IF NOT EXISTS (SELECT FROM agent_bindings b WHERE b.agent_id = agent) THEN
            INSERT INTO agent_bindings (agent_id, owner, bound_by) VALUES (agent, who, who) ON CONFLICT DO NOTHING;
        END IF;
        IF NOT EXISTS (SELECT FROM agent_bindings b WHERE b.agent_id = agent AND b.owner = who)
            AND NOT EXISTS (SELECT FROM agent_grants g WHERE g.agent_id = agent AND g.subject = 'user:' || who)
        THEN
            INSERT INTO agent_grants (id, agent_id, subject, permission, granted_by)
            VALUES (gen_random_uuid(), agent, 'user:' || who, 'use', who);
        END IF;
    END LOOP;
END $$;
CREATE FUNCTION tests_free_agents_of_workflow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tests_free_agents(NEW.user_id, NEW.spec);
    RETURN NULL;
END $$;
CREATE FUNCTION tests_free_agents_of_run() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM tests_free_agents((SELECT user_id FROM workflow_runs WHERE id = NEW.run_id), NEW.snapshot);
    RETURN NULL;
END $$;
CREATE TRIGGER tests_free_agents AFTER INSERT OR UPDATE OF spec ON workflows
    FOR EACH ROW EXECUTE FUNCTION tests_free_agents_of_workflow();
CREATE TRIGGER tests_free_agents AFTER INSERT ON workflow_run_specs
    FOR EACH ROW EXECUTE FUNCTION tests_free_agents_of_run();
"""


def free_agents(url: str) -> None:
    """In a migrated database that is no clone of ``tests/conftest``'s."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FREE_AGENTS)
