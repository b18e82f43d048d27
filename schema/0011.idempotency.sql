-- What a client has asked with an Idempotency-Key: written in the transaction of its effect, forgotten after 24 hours.
-- `digest` is of path and body; `made` is what a repeat needs to give the same answer.
-- depends: 0001.workflows

CREATE TABLE idempotency_keys (
    user_id    text NOT NULL,
    route      text NOT NULL,
    key        text NOT NULL,
    digest     bytea NOT NULL,
    made       json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, route, key)
);

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
