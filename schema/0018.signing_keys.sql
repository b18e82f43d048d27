-- Keys that nodes share with nobody else, such as that of event tickets where no secret is set.
-- depends: 0001.workflows

CREATE TABLE signing_keys (
    name    text PRIMARY KEY,
    key     bytea NOT NULL CHECK (octet_length(key) = 32),
    made_at timestamptz NOT NULL DEFAULT now()
);
