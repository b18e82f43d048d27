"""Validates one JSON value by one JSON Schema in a process of its own: ``python -m daemon.api.schema_check``.

A schema is an agent's word, and a few lines of it can keep a validator busy for ever. Here it may take ``SECONDS`` of
CPU and ``BYTES`` of memory, then the system ends it. Reads ``[schema, value]`` from standard input; answers an array of
``[path, message]`` as JSON, or an object that says why the schema cannot be used.
"""

from __future__ import annotations

import resource
import sys
from itertools import islice
from typing import Any

import jsonschema_rs
import orjson

SECONDS = 2
BYTES = 1 << 30
MOST_FAULTS = 20
BACKTRACKS = 100_000
MESSAGE_CHARS = 500


def check(schema: Any, value: Any) -> list[tuple[list[str | int], str]] | dict[str, str]:
    """The faults of the value. It refers to nothing elsewhere, and its patterns backtrack only so far."""
    try:
        options = jsonschema_rs.FancyRegexOptions(backtrack_limit=BACKTRACKS)
        validator = jsonschema_rs.validator_for(schema, offline=True, pattern_options=options)
        faults = list(islice(validator.iter_errors(value), MOST_FAULTS))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as fault:
        return {"unusable": str(fault)[:MESSAGE_CHARS]}
    return [(list(fault.instance_path), fault.message[:MESSAGE_CHARS]) for fault in faults]


def main() -> None:
    """Answer one question."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    if sys.platform == "linux":  # elsewhere it is not kept, or refused
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    schema, value = orjson.loads(sys.stdin.buffer.read())
    sys.stdout.buffer.write(orjson.dumps(check(schema, value)))


if __name__ == "__main__":
    main()
