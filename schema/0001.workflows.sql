-- Templates of runs. `spec` keeps the exact text it was given (json, not jsonb): a snapshot is evidence.
-- depends:

CREATE TABLE workflows (
    id          uuid PRIMARY KEY,
    user_id     text NOT NULL CHECK (char_length(user_id) BETWEEN 1 AND 255),
    title       text NOT NULL,
    description text,
    spec        json NOT NULL,
    version     integer NOT NULL DEFAULT 1,
    archived_at timestamptz,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX workflows_by_user ON workflows (user_id, id DESC);
