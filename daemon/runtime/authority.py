"""The node's book of authority: what stands about the calls of the runs it holds, by one version.

Turns read it without waiting. A run whose agents are not in it yet waits for ``learn``, and holds nobody else up. It is
never trusted alone: a commit that intends a call names the version it went by, and Postgres refuses another
(``store/journal``); then the book is read anew. Between that commit and the first byte ``allows`` is asked once more,
and says no where the version was not known to stand a moment ago: so there is a moment after which a hold is certain.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from daemon import telemetry
from daemon.auth.access import CERTAIN_S, Agent, Hold, Policy, ground_of, next_expiry
from daemon.errors import StoreUnavailable
from daemon.machine.effects import Invoke
from daemon.machine.ground import Ground
from daemon.machine.spec import StepSpec
from daemon.machine.state import Run
from daemon.runtime.catalogue import Catalogue
from daemon.telemetry import log

AGENTS_KEPT = 50_000
GROUNDS_KEPT = 100_000
REREAD = 2_000
"""Agents that are read anew with each version; the others once a run needs them."""


class AuthorityRecords(Protocol):
    """Bindings, grants, policies and holds, as they stand in Postgres."""

    async def read(self, agents: Sequence[str]) -> Said: ...

    async def version(self) -> int: ...

    async def wake_held(self) -> None: ...

    async def wake_asked(self) -> None: ...


class Said(Protocol):
    """What stood at one moment; an agent that nobody bound has no owner."""

    @property
    def version(self) -> int: ...

    @property
    def agents(self) -> Mapping[str, Agent]: ...

    @property
    def policies(self) -> tuple[Policy, ...]: ...

    @property
    def holds(self) -> tuple[Hold, ...]: ...


class RunClock(Protocol):
    """Postgres time, as ``clock.Clock`` carries it."""

    def now(self) -> int: ...

    def monotonic(self) -> float: ...


class Authority:
    """What is known of authority on this node. ``changed`` is called whenever another version was read."""

    def __init__(
        self,
        records: AuthorityRecords,
        catalogue: Catalogue,
        clock: RunClock,
        *,
        period_s: float,
        changed: Callable[[], None],
    ) -> None:
        self._records = records
        self._catalogue = catalogue
        self._clock = clock
        self._period_s = period_s
        self._changed = changed
        self._version = 0
        self._stale = True
        self._confirmed_at = float("-inf")
        """When (monotonic s) the version was last known to stand."""
        self._woken = 0
        """The version for which the passive runs that a hold keeps were woken."""
        self._woken_for: tuple[Policy, ...] = ()
        """The policies for which those were woken who are asked to approve."""
        self._agents: OrderedDict[str, Agent] = OrderedDict()
        self._recent: set[str] = set()
        self._before: set[str] = set()
        """Agents that were asked about under this version, and under the one before."""
        self._policies: tuple[Policy, ...] = ()
        self._requiring: tuple[Policy, ...] = ()
        """Those of the policies that require approval."""
        self._holds: tuple[Hold, ...] = ()
        self._grounds: dict[tuple[str, tuple[str, ...], bool, str, str], tuple[Ground, int | None]] = {}
        self._learned = 0
        """The catalogue's ``changes`` that ``_grounds`` knows of."""
        self._readings = self._read = 0
        """How many readings were begun, and which of them stands."""
        self._hint = asyncio.Event()

    def lacks(self, run: Run) -> bool:
        """Whether something must be learned before the run may have a turn that could intend a call."""
        if run.terminal:
            return False
        if self._stale:
            return True
        return any(map(self._lacks, run.spec.steps[run.step_index : run.step_index + 2]))

    def _lacks(self, step: StepSpec) -> bool:
        config = step.tool_config
        if config.agent_id not in self._agents:
            return True
        asks = step.manual or any(policy.fits(config.agent_id, config.tool_name) for policy in self._requiring)
        return asks and not self._catalogue.fresh(config.agent_id)

    async def learn(self, runs: Iterable[Run]) -> None:
        """Read what these runs lack. Raises StoreUnavailable; agents that do not answer are left out."""
        steps = [step for run in runs for step in run.spec.steps[run.step_index : run.step_index + 2]]
        wanted = {step.tool_config.agent_id for step in steps}
        if self._stale or not wanted <= self._agents.keys():
            await self._read_anew(wanted)
        await self._catalogue.learn(sorted({step.tool_config.agent_id for step in steps if self._lacks(step)}))

    def grounds(self, run: Run) -> RunGrounds:
        """The grounds of a run's calls by the version that is known here."""
        return RunGrounds(self, self._version, run)

    def allows(self, run: Run, call: Invoke) -> bool:
        """Whether the call may leave this moment: nothing bars or holds it, and it is what was approved, if it was."""
        ground = self.ground(run, call.agent_id, call.tool_name)
        if ground is None or ground.barred is not None or ground.held is not None:
            return False
        if self._stale or self._clock.monotonic() - self._confirmed_at >= CERTAIN_S:
            return False
        return call.as_approved and (call.approved is not None or not ground.traits.requires_approval)

    def ground(self, run: Run, agent_id: str, tool: str) -> Ground | None:
        """What stands about one call; None: not known."""
        agent = self._agents.get(agent_id)
        if agent is None:
            return None
        self._recent.add(agent_id)
        if self._learned != self._catalogue.changes or len(self._grounds) > GROUNDS_KEPT:
            self._grounds.clear()
            self._learned = self._catalogue.changes
        key = (run.user_id, run.groups, run.admin, agent_id, tool)
        known = self._grounds.get(key)
        if known is not None and (known[1] is None or self._clock.now() < known[1]):
            return known[0]
        now = self._clock.now()
        about = self._catalogue.about(agent_id, tool)
        ground = ground_of(
            agent,
            tool,
            user_id=run.user_id,
            groups=run.groups,
            admin=run.admin,
            now_ms=now,
            policies=self._policies,
            holds=self._holds,
            annotations=about.annotations if about is not None else None,
            schema_hash=about.schema_hash if about is not None else None,
        )
        self._grounds[key] = (ground, next_expiry(agent, now))
        return ground

    def outdated(self) -> None:
        """Postgres has another version: nothing is decided before it was read."""
        self._stale = True
        telemetry.authority_outdated.inc()

    def confirmed(self, version: int, at: float) -> None:
        """Postgres had this version at ``at`` (monotonic s) or later."""
        if version == self._version and at > self._confirmed_at:
            self._confirmed_at = at

    def hint(self) -> None:
        """Somebody changed something: look now."""
        self._hint.set()

    async def run(self) -> None:
        """Keep up with the version, until cancelled. A hint makes it quick, the period makes it sure."""
        while True:
            try:
                async with asyncio.timeout(self._period_s):
                    await self._hint.wait()
            except TimeoutError:
                pass
            self._hint.clear()
            try:
                await self._look()
                await self._wake_held()
            except StoreUnavailable as fault:
                log.warning("authority cannot be read", fault=str(fault))

    async def _look(self) -> None:
        started = self._clock.monotonic()
        version = self._version if self._stale else await self._records.version()
        if self._stale or version != self._version:
            await self._read_anew(())
        else:
            self.confirmed(version, started)

    async def _read_anew(self, wanted: Iterable[str]) -> None:
        started = self._clock.monotonic()
        self._readings += 1
        reading = self._readings
        said = await self._records.read(sorted(wanted))
        if said.version != self._version:
            known = sorted(self._recent | self._before)[:REREAD]
            said = await self._records.read(sorted({*known, *wanted}))
        if reading < self._read:  # one that began later was answered first
            return
        self._read = reading
        moved = said.version != self._version
        if moved or self._stale:
            self._grounds.clear()
        if moved:  # one that another reading brought meanwhile is of an older version
            self._agents.clear()
            self._before, self._recent = self._recent, set()
        self._agents.update(said.agents)
        while len(self._agents) > AGENTS_KEPT:
            self._agents.popitem(last=False)
        self._version, self._policies, self._holds = said.version, said.policies, said.holds
        self._requiring = tuple(policy for policy in said.policies if policy.requires_approval)
        self._stale = False
        self.confirmed(said.version, started)
        if moved:
            self._changed()
            await self._wake_held()

    async def _wake_held(self) -> None:
        """Once for each version, and again until Postgres has said yes."""
        version, policies = self._version, self._requiring
        if self._woken == version:
            return
        await self._records.wake_held()
        if policies != self._woken_for:  # it looks at every call that waits
            await self._records.wake_asked()
            self._woken_for = policies
        self._woken = version


class RunGrounds:
    """``machine.ground.Grounds`` of one run."""

    __slots__ = ("_authority", "_run", "version")

    def __init__(self, authority: Authority, version: int, run: Run) -> None:
        self._authority = authority
        self._run = run
        self.version = version

    def of(self, agent_id: str, tool_name: str) -> Ground | None:
        return self._authority.ground(self._run, agent_id, tool_name)
