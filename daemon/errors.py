"""The error tree: every failure Runwarden names, by whose fault it is.

Anyone may raise these; only ``api/gate.py`` turns them into HTTP answers and only ``cli`` into exit codes.
``code`` is stable and for programs, ``status`` is a hint for HTTP, the message defaults to the class docstring.

    RunwardenError
    ├── CallerError                 the client asked for something it cannot have
    │   ├── BadRequest 400 · Unauthenticated 401 · Forbidden 403 · NotFound 404 · TooSlow 408 · Conflict 409
    │   ├── Stale 412 · TooLarge 413 · Invalid 422 · TooMany 429
    ├── WorldError                  a neighbour (Postgres, Redis, a Gateway, an issuer) did not do its part
    │   ├── StoreUnavailable 503 · FabricUnavailable 503 · IssuerUnavailable 503
    │   └── Poison 500              one row or letter that the store can never accept
    └── SetupError                  the operator's settings or machine cannot work
"""

from __future__ import annotations

from typing import ClassVar


class RunwardenError(Exception):
    """Something went wrong inside Runwarden."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500

    def __init__(self, detail: str | None = None, *, code: str | None = None) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip()
        self.problem_code = code or type(self).code
        super().__init__(self.detail)


class CallerError(RunwardenError):
    """The request cannot be served as it stands."""

    code = "bad_request"
    status = 400


class BadRequest(CallerError):
    """The request is malformed."""


class Unauthenticated(CallerError):
    """A valid bearer token is required: send 'Authorization: Bearer <JWT>'."""

    code = "unauthenticated"
    status = 401


class Forbidden(CallerError):
    """You may not do this."""

    code = "forbidden"
    status = 403


class NotFound(CallerError):
    """There is no such resource, or it is not yours."""

    code = "not_found"
    status = 404


class Conflict(CallerError):
    """The resource is not in a state that allows this."""

    code = "conflict"
    status = 409

    def __init__(self, detail: str | None = None, *, code: str | None = None, location: str | None = None) -> None:
        """``location``: the path of what is there already, if the caller may see it."""
        self.location = location
        super().__init__(detail, code=code)


class Stale(CallerError):
    """Somebody else was first: the resource is not at the version that you know."""

    code = "version_conflict"
    status = 412


class TooSlow(CallerError):
    """The request body did not come in time."""

    code = "request_timeout"
    status = 408


class TooLarge(CallerError):
    """The request body is over the limit."""

    code = "body_too_large"
    status = 413


class Invalid(CallerError):
    """The body does not have the required shape."""

    code = "invalid_body"
    status = 422

    def __init__(self, detail: str | None = None, *, faults: tuple[tuple[str, str], ...] = (), code: str | None = None):
        """``faults`` are (JSON pointer into the body, what is wrong there) pairs."""
        self.faults = faults
        if detail is None and faults:
            detail = "; ".join(f"{path}: {message}" for path, message in faults)
        super().__init__(detail, code=code)


class TooMany(CallerError):
    """You do this too often: wait a moment, and go on."""

    code = "too_many_requests"
    status = 429


class WorldError(RunwardenError):
    """A service that Runwarden depends on did not answer as it must."""

    code = "dependency_unavailable"
    status = 503


class StoreUnavailable(WorldError):
    """Postgres does not answer; nothing was lost, try again shortly."""

    code = "store_unavailable"


class FabricUnavailable(WorldError):
    """Redis does not answer; nothing was lost, try again shortly."""

    code = "fabric_unavailable"


class IssuerUnavailable(WorldError):
    """The identity provider does not tell its keys, so nobody knows whether this token is good; try again shortly."""

    code = "issuer_unavailable"


class Poison(WorldError):
    """Postgres refuses this one transition whatever happens; it must be set aside."""

    code = "poison"
    status = 500


class SetupError(RunwardenError):
    """The settings or the machine do not allow a start."""

    code = "setup_error"
