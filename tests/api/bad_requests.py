"""The table of bad requests: what is sent, and the exact answer. One row a fault; used by ``test_bad_input``.

``{run}`` and ``{workflow}`` in a path or a body stand for ann's run, which waits for approval, and its workflow.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

NUL = "\x00"
LONE = "\ud800"
NOBODY = "01990000-0000-7000-8000-000000000000"
RUN = "/v1/workflow-runs/{run}"
WORKFLOWS = "/v1/workflows"
RUNS = "/v1/workflow-runs"


class Bad(NamedTuple):
    """One bad request and its answer; ``says`` stands in the answer's ``detail``."""

    name: str
    method: str
    path: str
    body: Any
    status: int
    code: str
    says: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def tool(**changes: Any) -> dict[str, Any]:
    return {"agent_id": "agent-1", "tool_name": "ok"} | changes


def one(**changes: Any) -> dict[str, Any]:
    """One step."""
    return {"id": "a", "name": "A", "tool_config": tool()} | changes


def workflow(*steps: Any, **changes: Any) -> dict[str, Any]:
    """A body for POST /v1/workflows; good without arguments."""
    return {"title": "T", "spec": {"steps": list(steps) or [one()]}} | changes


def spec(name: str, body: Any, says: str) -> Bad:
    """A workflow whose spec is at fault."""
    return Bad(name, "POST", WORKFLOWS, body, 422, "invalid_spec", says)


def body(name: str, path: str, sent: Any, says: str, code: str = "invalid_body") -> Bad:
    """A body that is at fault before any spec is looked at."""
    return Bad(name, "POST", path, sent, 422, code, says)


def raw(name: str, sent: bytes, says: str = "not JSON", code: str = "malformed_json") -> Bad:
    return Bad(name, "POST", WORKFLOWS, sent, 422, code, says)


MALFORMED = [
    raw("no body", b"", "send a JSON object"),
    raw("half an object", b'{"title": "T"'),
    raw("a trailing comma", b'{"title": "T",}'),
    raw("two values", b"{} {}"),
    raw("words", b"title=T&spec=x"),
    raw("NaN", b'{"title": NaN}'),
    raw("a number without end", b'{"title": 1e999}'),
    raw("UTF-16", '{"title": "T"}'.encode("utf-16")),
    raw("a byte order mark", b"\xef\xbb\xbf{}"),
    raw("invalid UTF-8", b'{"title": "\xff"}'),
    raw("a raw NUL", b'{"title": "\x00"}'),
    raw("a hundred thousand open brackets", b"[" * 100_000),
    raw("a hundred thousand nested lists", b"[" * 100_000 + b"]" * 100_000),
    raw("a hundred thousand nested objects", b'{"a":' * 30_000 + b"1" + b"}" * 30_000),
    raw("a list", b"[]", "must be a JSON object", "invalid_body"),
    raw("a string", b'"title"', "must be a JSON object", "invalid_body"),
    raw("null", b"null", "must be a JSON object", "invalid_body"),
    raw("a number", b"12", "must be a JSON object", "invalid_body"),
    Bad("a body over the limit", "POST", WORKFLOWS, workflow(title="x" * 300_000), 413, "body_too_large", "262144"),
    Bad("rubbish over the limit", "POST", RUN + "/cancel", b"[" * 300_000, 413, "body_too_large"),
    Bad("no body to approve", "POST", RUN + "/approve", b"", 422, "malformed_json", "JSON object"),
    Bad("half a cancel", "POST", RUN + "/cancel", b"{", 422, "malformed_json"),
    Bad("half a resume", "POST", RUN + "/resume", b"{", 422, "malformed_json"),
]

FIELDS = [
    body("an empty object", WORKFLOWS, {}, "/title"),
    body("no title", WORKFLOWS, {"spec": {"steps": [one()]}}, "/title"),
    body("no spec", WORKFLOWS, {"title": "T"}, "/spec"),
    body("an empty title", WORKFLOWS, workflow(title=""), "/title"),
    body("a long title", WORKFLOWS, workflow(title="x" * 256), "/title"),
    body("a title of the wrong type", WORKFLOWS, workflow(title=7), "/title"),
    body("a title that is null", WORKFLOWS, workflow(title=None), "/title"),
    body("a description of the wrong type", WORKFLOWS, workflow(description=["x"]), "/description"),
    body("a long description", WORKFLOWS, workflow(description="x" * 10_001), "/description"),
    body("a spec that is a list", WORKFLOWS, workflow(spec=[one()]), "/spec"),
    body("a spec that is text", WORKFLOWS, workflow(spec="{}"), "/spec"),
    body("a run of nothing", RUNS, {}, "/workflow_id"),
    body("a workflow id of the wrong type", RUNS, {"workflow_id": 7}, "/workflow_id"),
    body("a workflow id in a list", RUNS, {"workflow_id": ["{workflow}"]}, "/workflow_id"),
    body("a workflow id that is no UUID", RUNS, {"workflow_id": "7"}, "/workflow_id"),
    body("an empty workflow id", RUNS, {"workflow_id": ""}, "/workflow_id"),
    body("an approval of nothing", RUN + "/approve", {}, "/step_id"),
    body("an approval of the wrong type", RUN + "/approve", {"step_id": 1}, "/step_id"),
    body("an approval of an empty step", RUN + "/approve", {"step_id": ""}, "/step_id"),
    body("an approval that is a list", RUN + "/approve", ["a"], "JSON object"),
    body("a rejection of nothing", RUN + "/reject", {"reason": "x"}, "/step_id"),
    body("a rejection with a list of reasons", RUN + "/reject", {"step_id": "a", "reason": ["x"]}, "/reason"),
    body("a long reason to reject", RUN + "/reject", {"step_id": "a", "reason": "x" * 2001}, "/reason"),
    body("a long reason to cancel", RUN + "/cancel", {"reason": "x" * 2001}, "/reason"),
    body("a reason of the wrong type", RUN + "/cancel", {"reason": 7}, "/reason"),
    body("a cancel that is a list", RUN + "/cancel", [], "JSON object"),
    body("a confirmation that is not the word", RUN + "/resume", {"confirm": "yes"}, "/confirm"),
    body("a confirmation of the wrong type", RUN + "/resume", {"confirm": True}, "/confirm"),
]

SPECS = [
    spec("no steps", workflow(spec={}), "/spec/steps"),
    spec("no step", workflow(spec={"steps": []}), "/spec/steps"),
    spec("steps that are an object", workflow(spec={"steps": {"a": one()}}), "/spec/steps"),
    spec("steps that are null", workflow(spec={"steps": None}), "/spec/steps"),
    spec("1001 steps", workflow(*(one(id=f"s{n}") for n in range(1001))), "/spec/steps"),
    spec("duplicate step ids", workflow(one(), one(id="b"), one()), "/spec/steps/2/id"),
    spec("a step that is text", workflow("a"), "/spec/steps/0"),
    spec("a step without an id", workflow({"name": "A", "tool_config": tool()}), "/spec/steps/0/id"),
    spec("a step with an empty id", workflow(one(id="")), "/spec/steps/0/id"),
    spec("a step with a long id", workflow(one(id="x" * 256)), "/spec/steps/0/id"),
    spec("a step with a number for id", workflow(one(id=1)), "/spec/steps/0/id"),
    spec("a step without a name", workflow({"id": "a", "tool_config": tool()}), "/spec/steps/0/name"),
    spec("a step without a tool", workflow({"id": "a", "name": "A"}), "/spec/steps/0/tool_config"),
    spec("a tool that is text", workflow(one(tool_config="ok")), "/spec/steps/0/tool_config"),
    spec("a tool without an agent", workflow(one(tool_config={"tool_name": "ok"})), "/agent_id"),
    spec("a tool without a name", workflow(one(tool_config={"agent_id": "agent-1"})), "/tool_name"),
    spec("an empty agent", workflow(one(tool_config=tool(agent_id=""))), "/agent_id"),
    spec("an unknown type of step", workflow(one(type="script")), "/spec/steps/0/type"),
    spec("a misspelt approval_policy", workflow(one(aproval_policy="manual")), "/spec/steps/0/aproval_policy"),
    spec("an approval_policy of no kind", workflow(one(approval_policy="Manual")), "/spec/steps/0/approval_policy"),
    spec("an on_error of no kind", workflow(one(on_error="retry")), "/spec/steps/0/on_error"),
    spec("an unknown field of the spec", workflow(spec={"steps": [one()], "stepz": []}), "/spec/stepz"),
    spec("an unknown field of a tool", workflow(one(tool_config=tool(retries=3))), "/tool_config/retries"),
    spec("a field with slashes in its name", workflow(one(**{"a/b~c": 1})), "/spec/steps/0/a~1b~0c"),
    spec("variables in a list", workflow(spec={"steps": [one()], "variables": []}), "/spec/variables"),
    spec("arguments in a list", workflow(one(tool_config=tool(arguments=[]))), "/arguments"),
    spec("arguments that are text", workflow(one(tool_config=tool(arguments="{}"))), "/arguments"),
    spec("no time at all", workflow(one(tool_config=tool(timeout_ms=0))), "/timeout_ms"),
    spec("negative time", workflow(one(tool_config=tool(timeout_ms=-5))), "/timeout_ms"),
    spec("half a millisecond", workflow(one(tool_config=tool(timeout_ms=0.5))), "/timeout_ms"),
    spec("time as text", workflow(one(tool_config=tool(timeout_ms="1000"))), "/timeout_ms"),
    spec("time as a truth", workflow(one(tool_config=tool(timeout_ms=True))), "/timeout_ms"),
    spec("more than a week", workflow(one(tool_config=tool(timeout_ms=604_800_001))), "/timeout_ms"),
    spec("time of 63 bits", workflow(one(tool_config=tool(timeout_ms=2**63 - 1))), "/timeout_ms"),
    spec("a stream of the wrong type", workflow(one(tool_config=tool(stream="yes"))), "/stream"),
]

TEXTS = [
    body("NUL in the title", WORKFLOWS, workflow(title=f"a{NUL}b"), "/title"),
    body("NUL in the description", WORKFLOWS, workflow(description=NUL), "/description"),
    body("NUL in the spec's title", WORKFLOWS, workflow(spec={"title": NUL, "steps": [one()]}), "/spec/title"),
    body("NUL in a step's id", WORKFLOWS, workflow(one(id=NUL)), "/spec/steps/0/id"),
    body("NUL in a step's name", WORKFLOWS, workflow(one(name=NUL)), "/spec/steps/0/name"),
    body("NUL in an agent", WORKFLOWS, workflow(one(tool_config=tool(agent_id=NUL))), "/agent_id"),
    body("NUL in a tool", WORKFLOWS, workflow(one(tool_config=tool(tool_name=NUL))), "/tool_name"),
    body("NUL in an argument", WORKFLOWS, workflow(one(tool_config=tool(arguments={"a": [NUL]}))), "/arguments/a/0"),
    body("NUL in an argument's name", WORKFLOWS, workflow(one(tool_config=tool(arguments={NUL: 1}))), "/arguments"),
    body("NUL in a variable", WORKFLOWS, workflow(spec={"steps": [one()], "variables": {"v": NUL}}), "/variables/v"),
    body("NUL in an ignored field", WORKFLOWS, workflow(ignored=NUL), "/ignored"),
    body("NUL in a name of a field", WORKFLOWS, workflow(**{NUL: 1}), "NUL"),
    body("NUL in a workflow id", RUNS, {"workflow_id": NUL}, "/workflow_id"),
    body("NUL in an approval", RUN + "/approve", {"step_id": NUL}, "/step_id"),
    body("NUL in a reason to reject", RUN + "/reject", {"step_id": "a", "reason": NUL}, "/reason"),
    body("NUL in a reason to cancel", RUN + "/cancel", {"reason": f"x{NUL}"}, "/reason"),
    body(
        "NUL far down", WORKFLOWS, workflow(one(tool_config=tool(arguments={"a": [deep(900), NUL]}))), "/arguments/a/1"
    ),
    body("a lone surrogate in the title", WORKFLOWS, workflow(title=LONE), "surrogate", "malformed_json"),
    body(
        "a lone surrogate in an argument",
        WORKFLOWS,
        workflow(one(tool_config=tool(arguments={"a": LONE}))),
        "surrogate",
        "malformed_json",
    ),
    body("a lone surrogate in a reason", RUN + "/cancel", {"reason": "\udfff"}, "surrogate", "malformed_json"),
    body("a surrogate in an approval", RUN + "/approve", {"step_id": LONE}, "surrogate", "malformed_json"),
    body("a number of 65 bits", WORKFLOWS, workflow(one(tool_config=tool(arguments={"n": 2**64}))), "64 bits"),
    body(
        "a number below 64 bits", WORKFLOWS, workflow(one(tool_config=tool(arguments={"n": -(2**63) - 1}))), "64 bits"
    ),
    body("time of 65 bits", WORKFLOWS, workflow(one(tool_config=tool(timeout_ms=2**64))), "64 bits"),
    raw("a number of five thousand digits", b'{"title": "T", "n": ' + b"9" * 5000 + b"}", "", "malformed_json"),
    body("arguments 300 deep", WORKFLOWS, workflow(one(tool_config=tool(arguments={"a": deep(300)}))), "deep"),
    body("arguments 900 deep", WORKFLOWS, workflow(one(tool_config=tool(arguments={"a": deep(900)}))), "deep"),
    body("variables 300 deep", WORKFLOWS, workflow(spec={"steps": [one()], "variables": {"a": deep(300)}}), "deep"),
    body("an ignored field 900 deep", WORKFLOWS, workflow(ignored=deep(900)), "deep"),
]


def _nowhere() -> list[Bad]:
    """Every route about a run, with ids that are no run's."""
    routes = [("GET", ""), ("GET", "/events"), ("GET", f"/commands/{NOBODY}")]
    routes += [("POST", "/resume"), ("POST", "/cancel"), ("POST", "/approve"), ("POST", "/reject")]
    ids = {"an unknown id": NOBODY, "no UUID": "seven", "a long id": "7" * 3000, "NUL": "%00", "a dot": "%2e%2e"}
    ids |= {"a UUID and more": NOBODY + "0", "an injection": "'%20OR%201=1--", "a surrogate": "%ed%a0%80"}
    return [
        Bad(f"{method} {path} of {name}", method, f"/v1/workflow-runs/{run}{path}", {"step_id": "a"}, 404, "not_found")
        for method, path in routes
        for name, run in ids.items()
    ]


PLACES = [
    *_nowhere(),
    Bad("a run of an unknown workflow", "POST", RUNS, {"workflow_id": NOBODY}, 404, "not_found"),
    Bad("an odd Expect", "POST", RUNS, {"workflow_id": NOBODY}, 404, "not_found", "", (("Expect", "a miracle"),)),
    Bad("an odd Expect of bulk", "PUT", RUNS + "/bulk", {}, 405, "method_not_allowed", "", (("Expect", "x"),)),
    Bad("an unknown command", "GET", RUN + f"/commands/{NOBODY}", None, 404, "not_found"),
    Bad("a command that is no UUID", "GET", RUN + "/commands/x", None, 404, "not_found"),
    Bad("an unknown route", "GET", "/v1/nothing", None, 404, "no_such_route", "/openapi.json"),
    Bad("the root", "GET", "/", None, 404, "no_such_route"),
    Bad("an unknown verb of a run", "POST", RUN + "/destroy", None, 404, "no_such_route"),
    Bad("a run of no id", "GET", RUNS + "/", None, 404, "no_such_route"),
    Bad("a path upwards", "GET", "/v1/../../etc/passwd", None, 404, "no_such_route"),
    Bad("the wrong method of a workflow", "PUT", WORKFLOWS, {}, 405, "method_not_allowed"),
    Bad("the wrong method of a run", "DELETE", RUN, None, 405, "method_not_allowed", "takes GET"),
    Bad("a GET of a decision", "GET", RUN + "/cancel", None, 405, "method_not_allowed"),
    Bad("a POST of a stream", "POST", RUN + "/events", {}, 405, "method_not_allowed"),
    Bad("a GET of bulk", "GET", RUNS + "/bulk", None, 405, "method_not_allowed"),
    Bad("a method of WebDAV", "PROPFIND", WORKFLOWS, None, 405, "method_not_allowed"),
]

BAD_SEQS = ["-1", "1.5", "x", "", "1e3", "0x10", "%D9%A3", "%201", "9" * 19, "%00", "true"]
STREAMS = [
    *(
        Bad(f"{name}={value!r}", "GET", f"{RUN}/events?{name}={value}", None, 422, "invalid_parameter", name)
        for name in ("after_seq", "limit")
        for value in BAD_SEQS
    ),
    *(
        Bad(
            f"Last-Event-ID: {value}",
            "GET",
            RUN + "/events",
            None,
            422,
            "invalid_parameter",
            "Last-Event-ID",
            (("Last-Event-ID", value),),
        )
        for value in ("-1", "1.5", "x", "1e3", "9" * 19)
    ),
]

LISTS = [
    Bad(f"{query} of a list", "GET", f"{RUNS}?{query}", None, 422, "invalid_parameter", says)
    for query, says in (
        ("created_after=2026-01-01T00:00:00+02:00", "a + in a query is a blank: write it as %2B"),
        ("created_after=2026-01-01T00:00:00", "must be a time as RFC 3339 has it, with its zone"),
        ("created_before=2026-01-01%2010:00", "must be a time as RFC 3339 has it, with its zone"),
        ("limit=5&limit=6", "limit: stands there more than once"),
        ("stat=paused&stat=failed", "did you mean status?"),
    )
]

TABLE = [*MALFORMED, *FIELDS, *SPECS, *TEXTS, *PLACES, *STREAMS, *LISTS]


def as_bytes(sent: Any, **places: str) -> bytes | None:
    """A body as it goes over the wire."""
    if sent is None or isinstance(sent, bytes):
        return sent
    text = json.dumps(sent)
    for name, value in places.items():
        text = text.replace("{" + name + "}", value)
    return text.encode()
