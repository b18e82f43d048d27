-- Who is asked about a call, beside whoever started its run: in one place, as lists and single runs must agree on it.
-- depends: 0015.approvals

-- Whether a pattern, in which * stands for any text, fits the whole of a tool's name.
CREATE FUNCTION tool_fits(pattern text, tool text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pattern = '*' OR tool LIKE
        replace(replace(replace(replace(pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%')
$$;

-- Whether one of the subjects owns the agent, or was given the right to approve this tool of it.
CREATE FUNCTION decides_for(agent text, tool text, subjects text[]) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM agent_bindings b WHERE b.agent_id = agent AND 'user:' || b.owner = ANY(subjects)
    ) OR EXISTS (
        SELECT FROM agent_grants g
        WHERE g.agent_id = agent AND g.permission = 'approve' AND g.subject = ANY(subjects)
            AND (g.expires_at IS NULL OR g.expires_at > clock_timestamp())
            AND EXISTS (SELECT FROM unnest(g.tools) AS p WHERE tool_fits(p, tool))
    )
$$;

-- Whether one of the subjects was ever asked about a call of this run: then they may see the run, for good.
CREATE FUNCTION asked_to_decide(run uuid, subjects text[]) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT FROM workflow_run_approvals a
        WHERE a.run_id = run AND CASE WHEN a.requires_approval
            THEN (a.approvers = '{}' OR a.approvers && subjects) AND decides_for(a.agent_id, a.tool_name, subjects)
            ELSE a.approvers && subjects END
    )
$$;
