-- Who owned an agent before, and from which version on a token of theirs would be good again: none that they were given
-- is. An id with such a row is not new, so nobody takes it by asking for a token. And whose word a hold is.
-- depends: 0012.authority

CREATE TABLE agent_past_owners (
    agent_id      text NOT NULL CHECK (char_length(agent_id) BETWEEN 1 AND 255),
    owner         text NOT NULL CHECK (char_length(owner) BETWEEN 1 AND 255),
    token_version integer NOT NULL,
    ended_by      text NOT NULL,
    ended_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (agent_id, owner)
);

-- A hold by an admin is released by admins only, though it be on somebody's own agent.
ALTER TABLE holds ADD COLUMN by_admin boolean NOT NULL DEFAULT true;
CREATE INDEX holds_by_time ON holds (held_at DESC, id DESC);
