"""``/openapi.json``: the table of ``app`` in the words of OpenAPI 3.1. Reads declarations only, never a request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from openapi_pydantic import (
    Components,
    Header,
    Info,
    MediaType,
    OpenAPI,
    Operation,
    Parameter,
    PathItem,
    Reference,
    RequestBody,
    Response,
    Schema,
    SecurityScheme,
)
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from daemon.api.answers import Problem
from daemon.api.contract import Problems, Route, merged

_REF = "#/components/schemas/"
_TOKEN: Problems = {401: ("unauthenticated", "token_invalid", "token_expired", "token_revoked")}
_ROLE: Problems = {403: ("role_required",)}
_PACED: Problems = {429: ("too_many_changes",)}
_TICKET: Problems = {401: ("ticket_invalid", "ticket_expired")}
_OURS: Problems = {500: ("internal_error",), 503: ("store_unavailable", "fabric_unavailable", "issuer_unavailable")}
_BODY: Problems = {
    400: ("bad_request",),
    408: ("request_timeout",),
    413: ("body_too_large",),
    422: ("invalid_body", "malformed_json"),
}
_PARAMETERS: Problems = {422: ("invalid_parameter",)}
_WHERE = {"path": "path", "query": "query", "headers": "header"}
_ABOUT = """Durable, approval-gated workflows of tools that live on other people's machines.

Texts cannot hold NUL characters; the numbers of a body fit 64 bits, whole ones are written without a fraction, and it
is nested at most 200 deep. Step ids are unique within a workflow.
Integers in the arguments of a call stay within ±2^53: the Gateway reads numbers as 64-bit floats.

Every error is `application/problem+json` (RFC 9457) with a stable `code`."""


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """The document, as JSON."""
    paths: dict[str, PathItem] = {}
    for route in routes:
        setattr(paths.setdefault(route.path, PathItem()), route.method.lower(), _operation(route))
    told = OpenAPI(
        openapi="3.1.0",
        info=Info(title="Runwarden", version=version("runwarden"), description=_ABOUT),
        security=[{"token": []}],
        paths=paths,
        components=Components(
            schemas=_schemas(routes),
            securitySchemes={
                "token": SecurityScheme(
                    type="http",
                    scheme="bearer",
                    bearerFormat="JWT",
                    description="Its `sub` is you; or a service token (`rwt_…`), which speaks for who made it.",
                ),
                "ticket": SecurityScheme(
                    type="apiKey", name="ticket", security_scheme_in="query", description="Of `POST …/events-ticket`."
                ),
            },
        ),
    )
    document: dict[str, Any] = told.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    return document


def _operation(route: Route) -> Operation:
    takes = route.takes
    tickets = _takes_tickets(route)
    summary, _, more = (route.handler.__doc__ or "").strip().partition("\n")
    parameters: list[Parameter | Reference] = [
        parameter for name, where in _WHERE.items() if name in takes for parameter in _parameters(takes[name], where)
    ]
    return Operation(
        operationId=route.name,
        tags=[route.handler.__module__.rpartition(".")[2].replace("_", " ")],
        summary=summary.replace("``", "`"),
        description=more.strip() or None,
        parameters=[one for one in parameters if not (isinstance(one, Parameter) and one.name == "ticket")] or None,
        requestBody=_body(takes["body"]) if "body" in takes else None,
        responses={**_answers(route), **_refusals(problems_of(route))},
        security=[] if route.open else ([{"token": []}, {"ticket": []}] if tickets else None),
    )


def problems_of(route: Route) -> Problems:
    """Its own, and those of what it takes."""
    if route.open:
        return {}
    takes = route.takes
    tickets = _takes_tickets(route)
    return merged(
        route.problems,
        _TOKEN,
        _ROLE if route.role != "viewer" else {},
        _PACED if route.paced else {},
        _OURS,
        _TICKET if tickets else {},
        _BODY if "body" in takes else {},
        _PARAMETERS if {"query", "headers"} & takes.keys() else {},
    )


def _takes_tickets(route: Route) -> bool:
    return "ticket" in getattr(route.takes.get("query"), "model_fields", {})


def _parameters(model: type[BaseModel], where: str) -> Iterator[Parameter]:
    whole = model.model_json_schema(ref_template=_REF + "{model}")
    for name, schema in whole.get("properties", {}).items():
        yield Parameter.model_validate(
            {
                "name": name,
                "in": where,
                "required": name in whole.get("required", ()),
                "description": schema.get("description"),
                "schema": _said(schema),
            }
        )


def _said(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that was said: null is what nobody can say in a URL."""
    kept = {name: value for name, value in schema.items() if name not in ("anyOf", "default", "description", "title")}
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    default = {"default": schema["default"]} if schema.get("default") is not None else {}
    return kept | (kinds[0] if kinds else {}) | default


def _body(model: type[BaseModel]) -> RequestBody:
    required = any(field.is_required() for field in model.model_fields.values())
    return RequestBody(content={"application/json": _media(model)}, required=required)


def _media(model: type[BaseModel]) -> MediaType:
    return MediaType.model_validate({"schema": {"$ref": _REF + model.__name__}})


def _answers(route: Route) -> dict[str, Response | Reference]:
    found: dict[str, Response | Reference] = {}
    for status, answer in route.answers.items():
        content = {"application/json": _media(answer.model)} if answer.model is not None else {}
        if answer.media is not None:
            content[answer.media] = MediaType(media_type_schema=Schema())
        headers: dict[str, Header | Reference] = {
            name: Header(description=says, param_schema=Schema.model_validate({"type": "string"}))
            for name, says in answer.headers.items()
        }
        found[str(status)] = Response(description=answer.says, content=content or None, headers=headers or None)
    return found


def _refusals(problems: Problems) -> dict[str, Response | Reference]:
    """Problems by status; the schema names each code, so that a client can rely on them."""
    found: dict[str, Response | Reference] = {}
    for status, codes in problems.items():
        code = {"type": "object", "properties": {"code": {"type": "string", "enum": list(codes)}}}
        schema = Schema.model_validate({"allOf": [{"$ref": _REF + Problem.__name__}, code]})
        headers: dict[str, Header | Reference] = {}
        if status in (401, 503):
            name = "WWW-Authenticate" if status == 401 else "Retry-After"
            headers[name] = Header(param_schema=Schema.model_validate({"type": "string"}))
        found[str(status)] = Response(
            description=", ".join(f"`{one}`" for one in codes),
            content={"application/problem+json": MediaType(media_type_schema=schema)},
            headers=headers or None,
        )
    return found


def _schemas(routes: Sequence[Route]) -> dict[str, Schema]:
    """Every model that a body or an answer is, by its name, and those within them."""
    models: dict[type[BaseModel], None] = {Problem: None}
    for route in routes:
        models |= {route.takes["body"]: None} if "body" in route.takes else {}
        models |= {answer.model: None for answer in route.answers.values() if answer.model is not None}
    _, whole = models_json_schema([(model, "validation") for model in models], ref_template=_REF + "{model}")
    return {name: Schema.model_validate(schema) for name, schema in whole["$defs"].items()}
