-- Tokens for automation: opaque to their bearer, here only as SHA-256. What they may do is `scopes`, as roles of theirs.
-- depends: 0001.workflows

CREATE TABLE service_tokens (
    id           uuid PRIMARY KEY,
    digest       bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    user_id      text NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 255),
    name         text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 255),
    scopes       text[] NOT NULL CHECK (cardinality(scopes) > 0),
    groups       text[] NOT NULL DEFAULT '{}',
    made_by      text NOT NULL,
    made_at      timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    last_used_at timestamptz,
    revoked_at   timestamptz,
    revoked_by   text
);
CREATE INDEX service_tokens_by_user ON service_tokens (user_id, made_at DESC, id DESC);
