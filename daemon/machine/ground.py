"""What stands about a call before it may be made: may the run's user make it, is it held, what is its tool like.

Plain values. ``auth/access`` makes them from bindings, grants, policies and holds; ``settle`` and ``decide`` go by
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, TypeAlias

from msgspec import Struct

Risk = Literal["low", "medium", "high"]
RISKS: Mapping[Risk, int] = {"low": 0, "medium": 1, "high": 2}
"""In their order."""

Subject: TypeAlias = str
"""``user:<id>`` or ``group:<name>``: whom a grant or an approval means."""


class Traits(Struct, frozen=True, kw_only=True, gc=False):
    """What a tool is like: what it says of itself (MCP annotations), where no admin said otherwise (policies)."""

    risk: Risk = "medium"
    writes: bool = True
    open_world: bool = True
    idempotent: bool = False
    requires_approval: bool = False
    denied: bool = False
    repeat: bool | None = None
    """An admin's word whether a call of unknown outcome may simply be made again; None: they said nothing."""


class Barred(NamedTuple):
    """Why a run's user may not make a call: a stable code, and a sentence that names the agent and says what to do."""

    code: Literal["agent_unauthorized", "tool_denied"]
    message: str


class Ground(Struct, frozen=True, kw_only=True):
    """All that is known about one tool of one agent for one run, by one version of the authority."""

    traits: Traits = Traits()
    barred: Barred | None = None
    held: str | None = None
    """A sentence: what is held, by whom and why."""
    deciders: frozenset[Subject] = frozenset()
    """Where policy requires approval, who decides: the agent's owner and whom they let approve this tool."""
    schema_hash: str | None = None
    """SHA-256 of the tool's input schema; None while nobody could ask the agent."""


class Grounds(Protocol):
    """The grounds of one run's calls, by one version of the authority."""

    @property
    def version(self) -> int: ...

    def of(self, agent_id: str, tool_name: str) -> Ground | None:
        """None: not known yet; whoever holds the run finds out, and asks again."""
        ...
