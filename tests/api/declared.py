"""Whether an answer is one that its route declares: so every test of the API holds ``/openapi.json`` to its word."""

from __future__ import annotations

import re
from typing import Any

from daemon.api.answers import Problem
from daemon.api.app import ROUTES
from daemon.api.contract import Route
from daemon.api.openapi import problems_of

_PLACES = [(route, re.compile(re.sub(r"\{\w+\}", "[^/]+", route.path))) for route in ROUTES]


def route_of(method: str, path: str) -> Route | None:
    """The route that answers, if there is one."""
    plain = path.partition("?")[0]
    fitting = [route for route, place in _PLACES if route.method == method and place.fullmatch(plain)]
    return min(fitting, key=lambda route: "{" in route.path, default=None)


def assert_declared(method: str, path: str, status: int, kind: str, raw: bytes) -> None:
    """The status, the shape of the body and the code of a problem are among those that the route names."""
    route = route_of(method, path)
    if route is None:
        return
    if kind == "application/problem+json":
        told: Any = Problem.model_validate_json(raw, extra="forbid")
        if told.code == "no_such_route":
            return  # the path has more in it than a pattern sees
        assert told.code in problems_of(route).get(status, ()), f"{route.name} does not declare {status} {told.code}"
        return
    answer = route.answers.get(status)
    assert answer is not None, f"{route.name} does not declare {status}"
    if answer.model is not None and kind != answer.media:
        answer.model.model_validate_json(raw, extra="forbid")
