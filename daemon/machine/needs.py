"""Which facts ``settle`` wants before it may go on; the runtime fetches them, the events record what was used.

Today every intent wants one fact: whether somebody hears the events of the Gateway that has the step's agent (an intent
without a listener could lose its RESULT). Grants, policies and earlier results will join here.
"""

from __future__ import annotations

from dataclasses import dataclass

from daemon.machine.commands import Epoch
from daemon.machine.state import Limits, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """``agents``: those whose Gateway must be asked about before the next turn's intents."""

    agents: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the runtime found. ``epoch`` is the claim under which new intents are made."""

    epoch: Epoch
    gateway_ready: bool
    """Whether this node may intend calls at all."""
    limits: Limits
    unheard: frozenset[str] = frozenset()
    """Of the agents in ``Needs``, those whose Gateway nobody hears."""

    def ready_for(self, agent_id: str) -> bool:
        """Whether a call to this agent may be intended."""
        return self.gateway_ready and agent_id not in self.unheard


def needs(run: Run) -> Needs:
    """The current step's agent and the next one's: one turn may finish the one and intend the other."""
    if run.terminal:
        return Needs()
    steps = run.spec.steps[run.step_index : run.step_index + 2]
    return Needs(agents=frozenset(step.tool_config.agent_id for step in steps))
