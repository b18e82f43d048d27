"""The host: one turn loop over all rung runs, and the lanes behind it. An actor is a value here, not a task.

A turn is: read the whole inboxes and the open command rows of every rung run, fold each (``Actor.turn``), hand the
transitions to the lanes; after the commit send what is owed, tell the watchers, and delete exactly the letters folded
(``afterwards``).
Exceptions are contained per run: a letter that alone makes a turn or its commit fail is set aside and the run goes on;
a run whose own turn keeps failing is parked. Its neighbours never notice. (That Postgres, Redis or a Gateway is away is
no failure of a turn.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from daemon import telemetry
from daemon.errors import FabricUnavailable, StoreUnavailable
from daemon.machine.commands import Command, CommandId, Entry, Urgency
from daemon.machine.effects import approval_expires_at
from daemon.machine.needs import Facts, needs
from daemon.machine.record import Outcomes
from daemon.machine.state import Limits
from daemon.runtime.actor import REASON_CHARS, Actor, Turn
from daemon.runtime.afterwards import Afterwards
from daemon.runtime.awake import Awake
from daemon.runtime.clock import Clock
from daemon.runtime.learning import Learning
from daemon.runtime.ownership import Ownership
from daemon.runtime.ports import Aside, Authority, Claims, Dispatch, Inbox, Lane, Publisher, Tools, Weather
from daemon.runtime.residents import Residents
from daemon.runtime.returns import Returns
from daemon.runtime.sender import Sender
from daemon.telemetry import log

TURN_LIMIT = 500
"""Most runs folded in one go, so that nobody waits long for the others."""
STRETCH_S = 0.003
"""Longest stretch of turns before everybody else has a go: requests, and the lanes, which commit meanwhile.

Of 10 ms, GETs beside creations and steps had a p99 of 37 and 85 ms, of 3 ms 26 and 22; 1.5 ms cost a tenth of the CPU.
"""
RETRY_S = 0.25
LEAST_PAUSE_S = 0.05
"""Between two looks whether a run may leave."""
NEAR_MS = 2000
"""A run whose deadline is nearer than this stays."""
FAILURES_BEFORE_PARK = 3


class Host:
    """Drives the residents. ``run`` until cancelled; ``quiet`` waits until no turn is under way."""

    def __init__(
        self,
        *,
        residents: Residents,
        clock: Clock,
        lanes: Sequence[Lane],
        claims: Claims,
        inbox: Inbox,
        publisher: Publisher,
        ownership: Ownership,
        dispatch: Dispatch,
        aside: Aside,
        weather: Weather,
        tools: Tools,
        authority: Authority,
        limits: Limits,
        lease_ttl_s: float,
        linger_s: float,
        batch: int,
        awake: Awake,
    ) -> None:
        self._residents = residents
        self._clock = clock
        self._lanes = [(lane, asyncio.Queue[Turn]()) for lane in lanes]
        self._claims = claims
        self._inbox = inbox
        self._ownership = ownership
        self._sender = Sender(residents, clock, dispatch, tools, authority, fresh_s=lease_ttl_s / 2)
        self._weather = weather
        self._tools = tools
        self._authority = authority
        self._awake = awake
        self._returns = Returns(self._ask_again_at)
        self._learning = Learning(residents, clock, authority, retry_s=RETRY_S)
        self._limits = limits
        self._linger_s = linger_s
        self._batch = batch
        self._afterwards = Afterwards(
            residents=residents,
            clock=clock,
            claims=claims,
            inbox=inbox,
            aside=aside,
            publisher=publisher,
            rest=self._rest,
            later=awake.later,
            retry_s=RETRY_S,
        )

    async def run(self) -> None:
        """Turn until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number, (lane, queue) in enumerate(self._lanes):
                group.create_task(self._commit(lane, queue), name=f"lane-{number}")
                group.create_task(lane.keep_up(), name=f"rows-{number}")
            group.create_task(self._afterwards.run(), name="afterwards")
            group.create_task(self._turns(), name="turns")
            group.create_task(self._learning.run(), name="learning")
            group.create_task(self._returns.run(), name="returns")
            group.create_task(self._residents.strays.run(self._inbox), name="strays")

    def stop_intending(self) -> None:
        """From now on no tool call is begun; what comes back is still folded and committed."""
        self._sender.intending = False

    async def quiet(self) -> None:
        """Until every turn under way is over, every answer told by now is folded, and watchers have heard of it."""
        await self._residents.quiet()
        await self._afterwards.quiet()

    def ask_again(self, agent_id: str | None = None) -> None:
        """We may have missed something (the Gateway's stream broke, or this agent's tunnel): inquire about every
        attempt in flight, or, at its turn, about those at the agent."""
        if agent_id is None:
            self._ask_again_at(None)
        else:
            self._returns.note(agent_id)

    def _ask_again_at(self, agents: frozenset[str] | None) -> None:
        for actor in self._residents:
            try:
                if agents is None or actor.agent_id in agents:
                    self.ask_again_about(actor)
            except Exception:  # noqa: BLE001 - one run's defect must not stop its neighbours
                self._give_up(actor)

    def ask_again_about(self, actor: Actor) -> None:
        """As ``ask_again``, for one run whose letters may have been lost with its lease."""
        inquiry = actor.ask_again()
        if inquiry is not None:
            self._sender.send(actor, inquiry)

    async def _turns(self) -> None:
        while True:
            await self._residents.wait()
            actors = [actor for actor in self._residents.take(TURN_LIMIT) if not self._learning.takes(actor)]
            why: dict[Actor, Urgency | None] = {}
            # At the first look at a run that never moved there can be no letter, for it has called nothing.
            reading = [one for one in actors if one.unread and (one.run.last_seq or one.rests)]
            for actor in actors:
                why[actor], actor.rung = actor.rung, None
                actor.unread = False
            try:
                letters = await self._inbox.read([one.id for one in reading]) if reading else {}
                looked = self._clock.now()
                asking = [actor.id for actor in actors if why[actor] == "c" or _expires(actor, by=looked)]
                commands = await self._claims.open_commands(asking) if asking else {}
            except (FabricUnavailable, StoreUnavailable) as fault:
                log.warning("turns wait", fault=str(fault))
                for actor in actors:
                    actor.rung = "c" if actor.rung == "c" else why[actor]
                    actor.unread = True
                self._residents.put_back(actors, self._clock.monotonic() + RETRY_S)
                await asyncio.sleep(RETRY_S)
                continue
            heard, until = self._weather.all_heard, self._clock.monotonic() + STRETCH_S
            for actor in actors:
                if self._clock.monotonic() >= until:
                    await asyncio.sleep(0)
                    heard, until = self._weather.all_heard, self._clock.monotonic() + STRETCH_S
                entries = letters.get(actor.id, [])
                if len(entries) >= self._inbox.read_limit:  # more letters wait, and their bells have rung already
                    actor.rung, actor.unread = actor.rung or "h", True
                mail, actor.mail = actor.mail, []
                # What lay in the inbox came first.
                now = self._clock.now()
                if _expires(actor, by=now):  # what was said before that and not read yet counts: the next turn has it
                    now = min(now, looked)
                self._turn(actor, [*entries, *mail] if entries else mail, commands.get(actor.id, []), now, heard)

    def look_again(self) -> None:
        """Grants, policies or holds have changed: runs that a hold keeps may go on.

        Those too whose turn is under way: it went by what stood before, and may be about to say that they are held.
        """
        for actor in self._residents:
            if actor.busy or actor.run.paused_reason == "held":
                self._residents.ring_here(actor, "h")

    def _turn(
        self, actor: Actor, letters: Sequence[Entry], commands: Sequence[Command], now: int, all_heard: bool
    ) -> None:
        telemetry.turns.inc()
        facts = Facts(
            epoch=actor.epoch,
            gateway_ready=self._sender.intending,
            permitted=self._sender.fresh(actor),
            limits=self._limits,
            grounds=self._authority.grounds(actor.run),
            unheard=frozenset() if all_heard else self._weather.unheard(needs(actor.run).agents),
            hints=self._tools.hints,
        )
        letters, folded = self._cautiously(actor, letters, commands)
        expires_at = approval_expires_at(actor.run)
        if expires_at is not None and len(folded) < len(commands):  # nothing expires while a word is kept back
            now = min(now, expires_at - 1)
        commands = folded
        try:
            turn = actor.turn(letters, commands, now, facts)
        except Exception as fault:  # noqa: BLE001 - one run's defect must not stop its neighbours
            self._failed(actor, letters, commands, facts, fault)
            return
        if turn.transition is not None:
            actor.quiet_since = self._clock.monotonic()
            self._queue_of(actor).put_nowait(turn)
        elif turn.entries:
            self._afterwards.put([turn])
        else:
            self._rest(actor)

    def _cautiously(
        self, actor: Actor, letters: Sequence[Entry], commands: Sequence[Command]
    ) -> tuple[Sequence[Entry], Sequence[Command]]:
        """How much of it the run may be given at once; see ``Caution``."""
        match actor.caution:
            case "none":
                return letters, commands
            case "alone":
                actor.caution = "singly"
                self._residents.keep(actor, letters, again=True)
                return (), ()
            case "singly" if letters:
                self._residents.keep(actor, letters[1:], again=True)
                return letters[:1], ()
            case "singly":
                actor.caution = "none"
                return letters, commands

    def _failed(
        self, actor: Actor, letters: Sequence[Entry], commands: Sequence[Command], facts: Facts, fault: Exception
    ) -> None:
        poison = actor.poison(letters, self._clock.now(), facts)
        if poison:
            sound = [entry for number, entry in enumerate(letters) if number not in poison]
            self._residents.keep(actor, sound, again=True)
            self._afterwards.put([Turn(actor, None, (letters[number],), aside=why) for number, why in poison.items()])
            return
        actor.failures += 1
        log.exception("a run's turn failed", run_id=str(actor.id), failures=actor.failures)
        if actor.failures < FAILURES_BEFORE_PARK:
            self._residents.keep(actor, letters, again=True)
            self._residents.put_back([actor], self._clock.monotonic() + RETRY_S * actor.failures)
            return
        self._park(actor, letters, [command.id for command in commands], f"{type(fault).__name__}: {fault}")
        actor.failures = 0

    def _park(self, actor: Actor, letters: Sequence[Entry], commands: Sequence[CommandId], message: str) -> None:
        telemetry.parked.inc()
        turn = actor.park(letters, commands, self._clock.now(), message[:REASON_CHARS])
        if not turn.entries:
            self._residents.keep(actor, letters)
        log.error("a run is parked", run_id=str(actor.id), fault=message)
        if turn.transition is not None:
            self._queue_of(actor).put_nowait(turn)
        else:
            self._afterwards.put([turn])

    def _queue_of(self, actor: Actor) -> asyncio.Queue[Turn]:
        """A run is always in the same lane."""
        number = actor.id.int % len(self._lanes) if len(self._lanes) > 1 else 0
        return self._lanes[number][1]

    async def _commit(self, lane: Lane, queue: asyncio.Queue[Turn]) -> None:
        """Whatever arrived while the last commit was in flight goes into the next: no timer."""
        while True:
            batch = [await queue.get()]
            while len(batch) < self._batch and not queue.empty():
                batch.append(queue.get_nowait())
            # Who was dropped meanwhile may have moved in again: of its two turns only the newer may be committed.
            gone = [turn for turn in batch if self._residents.get(turn.actor.id) is not turn.actor]
            for turn in gone:
                self._residents.drop(turn.actor, turn.entries)
            batch = [turn for turn in batch if turn not in gone] if gone else batch
            started = self._clock.monotonic()
            transitions = [turn.transition for turn in batch if turn.transition is not None]
            self._awake.begun(batch[0].actor if len(batch) == 1 else None)
            outcomes = await lane.commit(transitions)
            for one in transitions:
                if one.authority is not None and one.run_id in outcomes.committed:
                    self._authority.confirmed(one.authority, started)
            committed = [turn for turn in batch if self._concluded(turn, outcomes)]
            self._awake.over()
            if committed:
                self._afterwards.put(committed)

    def _concluded(self, turn: Turn, outcomes: Outcomes) -> bool:
        """Take over what became of one transition; True when it was committed."""
        actor, transition = turn.actor, turn.transition
        assert transition is not None  # noqa: S101 - only turns with one reach a lane
        if actor.id in outcomes.committed:
            self._clock.observe(outcomes.committed[actor.id])
            actor.run = transition.run
            actor.failures = 0
            try:
                self._sender.send_owed(actor)
            except Exception:  # noqa: BLE001 - one run's defect must not stop its neighbours
                self._give_up(actor)
            return True
        if actor.id in outcomes.fenced:
            telemetry.fenced.inc()
            log.info("fenced: another node owns the run", run_id=str(actor.id), epoch=actor.epoch)
            self._residents.drop(turn.actor, turn.entries)
            return False
        if actor.id in outcomes.outdated:
            self._authority.outdated()
            actor.local[:0] = turn.local
            self._residents.keep(actor, turn.entries, again=True)
            self._residents.free(actor)
            return False
        self._refused(turn, outcomes.poisoned.get(actor.id, "the journal gave no verdict"))
        return False

    def _refused(self, turn: Turn, reason: str) -> None:
        """Postgres will never accept this turn: find the letter that is at fault; without one it is the run itself."""
        actor, transition = turn.actor, turn.transition
        actor.local[:0] = turn.local
        if turn.entries and actor.caution == "none":
            actor.caution = "alone"
            self._residents.keep(actor, turn.entries, again=True)
            self._residents.free(actor)
        elif turn.entries and turn.aside is None:
            self._afterwards.put([replace(turn, transition=None, aside=reason)])
        elif actor.failures < FAILURES_BEFORE_PARK:
            actor.failures = FAILURES_BEFORE_PARK
            commands = [row.command_id for row in transition.verdicts] if transition is not None else []
            self._park(actor, (), commands, f"Postgres refuses what was told: {reason}")
        else:
            self._residents.drop(turn.actor, turn.entries)

    def _rest(self, actor: Actor, *, owes: bool = True) -> None:
        """The turn is over: send what is owed, set the alarms, and let the run go when it only waits."""
        actor.rests += 1
        if self._residents.get(actor.id) is not actor:
            return
        try:
            self._rested(actor, owes=owes)
        except Exception:  # noqa: BLE001 - one run's defect must not stop its neighbours
            self._give_up(actor)

    def _rested(self, actor: Actor, *, owes: bool) -> None:
        if owes:
            self._sender.send_owed(actor)
        if not actor.run.in_flight and self._authority.lacks(actor.run):
            actor.rung = actor.rung or "h"  # what was not known may be all that it waits for
        moment, now = self._clock.monotonic(), self._clock.now()
        when = actor.deadline(now)
        if self._may_leave(actor, moment) and (when is None or when - now > NEAR_MS):
            self._ownership.let_go(actor)
            return
        at = max(actor.quiet_since + self._linger_s, moment + max(self._linger_s / 2, LEAST_PAUSE_S))
        self._residents.alarm(actor, at if when is None else min(at, self._clock.at(when)))
        self._residents.free(actor)

    def _give_up(self, actor: Actor) -> None:
        """A run of which nobody can say what it owes: its lease runs out, and each who claims it then waits longer."""
        telemetry.given_up.inc()
        log.exception("it cannot be said what a run owes, so it is given up", run_id=str(actor.id))
        self._residents.drop(actor, ())

    def _may_leave(self, actor: Actor, moment: float) -> bool:
        """Whether the run only waits, at ``moment`` (monotonic s): nothing rung, nothing open, quiet for a while."""
        if actor.rung is not None or actor.local or actor.mail or actor.open_effects:
            return False
        if actor.doubted or not self._sender.intending:
            return False
        # Before any call no letter can come: only a person can move a run that waits, so it does not linger.
        uncalled = actor.run.paused_reason == "awaiting_approval" and actor.run.attempt is None
        return uncalled or moment - actor.quiet_since >= self._linger_s


def _expires(actor: Actor, *, by: int) -> bool:
    """Whether what waits for approval has waited too long by then (epoch ms). Its commands are asked for first: a word
    that was on disk in time counts, though its bell was lost or is still on its way."""
    expires_at = approval_expires_at(actor.run)
    return expires_at is not None and by >= expires_at
