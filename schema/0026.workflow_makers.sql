-- Who made the service token that a version of a workflow was saved with: `forbid_self` means them too. Versions that
-- somebody saved with a token of their own have no line, nor has what nodes of the release before save. A table and no
-- column of `workflows`, whose every column those nodes read.
-- depends: 0024.checkpoints

CREATE TABLE workflow_makers (
    workflow_id uuid NOT NULL REFERENCES workflows (id) ON DELETE CASCADE,
    version     integer NOT NULL,
    token_maker text NOT NULL,
    PRIMARY KEY (workflow_id, version)
);
