"""Which facts ``settle`` wants before it may go on; the runtime fetches them, the events record what was used.

Every intent wants to know what stands about its call (``ground``: grants, policies, holds), and whether somebody hears
the events of the Gateway that has the step's agent (without a listener its RESULT could be lost); an attempt of unknown
outcome, whether its tool declares itself harmless to repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

from daemon.machine.commands import Epoch
from daemon.machine.ground import Ground, Grounds
from daemon.machine.state import Limits, Run

Hint = Literal["read_only", "idempotent"]
"""What a tool says of itself in its MCP annotations; absent: that it may change things, each time anew."""


class Needs(Struct, frozen=True, kw_only=True, gc=False):
    """``agents``: those whose Gateway must be asked about before the next turn's intents."""

    agents: frozenset[str] = frozenset()


class Facts(Struct, frozen=True, kw_only=True, gc=False):
    """What the runtime found. ``epoch`` is the claim under which new intents are made."""

    epoch: Epoch
    gateway_ready: bool
    """Whether this node may intend calls at all."""
    limits: Limits
    grounds: Grounds
    permitted: bool = True
    """Whether a call of this run may leave at this moment: its lease was renewed a moment ago."""
    unheard: frozenset[str] = frozenset()
    """Of the agents in ``Needs``, those whose Gateway nobody hears."""
    hints: Mapping[tuple[str, str], Hint] = field(default_factory=dict)
    """By (agent, tool); of a tool that is not known there, nothing is assumed."""

    def ready_for(self, agent_id: str) -> bool:
        """Whether a call to this agent may be intended."""
        return self.gateway_ready and agent_id not in self.unheard


class Unknown:
    """Grounds of which nothing is known: no call is intended by them."""

    version = 0

    def of(self, agent_id: str, tool_name: str) -> Ground | None:
        return None


def needs(run: Run) -> Needs:
    """The current step's agent and the next one's: one turn may finish the one and intend the other."""
    if run.terminal:
        return Needs()
    steps = run.spec.steps[run.step_index : run.step_index + 2]
    return Needs(agents=frozenset(step.tool_config.agent_id for step in steps))
