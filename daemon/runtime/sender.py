"""Sends what runs owe: each effect once under a claim, and a call only with its permit. The host's hand."""

from __future__ import annotations

from functools import partial

from daemon.machine.commands import Letter, Sent
from daemon.machine.effects import Effect, Invoke
from daemon.runtime.actor import Actor
from daemon.runtime.clock import Clock
from daemon.runtime.ports import Authority, Dispatch, Tools
from daemon.runtime.residents import Residents


class Sender:
    """``fresh_s``: how old the last renewal of a lease may be when a call leaves."""

    def __init__(
        self,
        residents: Residents,
        clock: Clock,
        dispatch: Dispatch,
        tools: Tools,
        authority: Authority,
        *,
        fresh_s: float,
    ) -> None:
        self._residents = residents
        self._clock = clock
        self._dispatch = dispatch
        self._tools = tools
        self._authority = authority
        self._fresh_s = fresh_s
        self.intending = True
        """Whether calls may be begun."""

    def fresh(self, actor: Actor) -> bool:
        """Whether the run's lease was renewed so lately that a call may leave."""
        return self._clock.monotonic() - actor.renewed_at < self._fresh_s

    def send_owed(self, actor: Actor) -> None:
        for effect in actor.owed(self._clock.now()):
            self.send(actor, effect)

    def send(self, actor: Actor, effect: Effect) -> None:
        if actor.agent_id is not None:
            self._tools.want(actor.agent_id)
        actor.open_effects += 1
        permit = partial(self._permit, actor, effect)
        self._dispatch.submit(effect, permit=permit, answer=partial(self._answer, actor))

    def _permit(self, actor: Actor, effect: Effect) -> bool:
        """Law 7: the lease was renewed a moment ago, the run is still ours, and the call is still owed; nothing forbids
        it, and it is what was approved."""
        ours = self.intending and self._residents.get(actor.id) is actor
        allowed = not isinstance(effect, Invoke) or self._authority.allows(actor.run, effect)
        return self.fresh(actor) and ours and allowed and actor.still_owes(effect, self._clock.now())

    def _answer(self, actor: Actor, letter: Letter | None) -> None:
        actor.open_effects -= 1
        if letter is not None and self._residents.get(actor.id) is actor:
            actor.local.append(letter)
            self._residents.ring_here(actor, "s" if isinstance(letter, Sent) else "h")
