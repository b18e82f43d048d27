-- Letters that a run could not take: set aside with the reason, so that the run goes on and a person can look.
-- depends: 0002.runs

CREATE TABLE workflow_run_poison (
    run_id     uuid NOT NULL,
    digest     bytea NOT NULL,
    letter     bytea NOT NULL CHECK (octet_length(letter) <= 65536),
    bytes      integer NOT NULL,
    reason     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, digest)
);
