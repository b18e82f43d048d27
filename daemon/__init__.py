"""Runwarden's daemon: the architecture document of the code.

Runwarden carries *runs*: serial lists of tool calls on other people's machines, some behind a person's approval. Every
replica is the same process. Nothing is lost, nothing runs twice without somebody knowing.


The rooms
---------
machine decides, store remembers, fabric carries, runtime drives, api speaks, dev pretends.

    HTTP ─ api/runs ─▶ command row (Postgres) ─▶ fabric/inbox ─(bell)─▶ runtime/host ─▶ runtime/actor
                                                    ▲   ▲                                  │ hear · decide · settle
                 runtime/ingest ────────────────────┘   └─(in memory)─ runtime/dispatch ◀──┤ (machine, pure)
                       ▲ (in memory, where the run is held here)          │                ▼
                 Gateway events                                     Gateway calls    store/journal.commit
                                                                                     (one statement, fenced, grouped)
                                                                                           │
    SSE ◀─ api/stream ◀── store/log (after Last-Event-ID) ◀─(hint, frames)─ fabric/bus ◀─ runtime/telling

    machine/    PURE. spec → commands → decide, hear → settle → evolve → effects, record, wire; ground (what stands
                about a call), approval (what exactly was approved, by whom, whether it still counts), cards (as told)
    store/      Postgres and all SQL: journal (commit), claims, passive, quarantine, poison, runs, workflows, commands,
                log, audit (writes lines), trail (reads them), migrate, privileges (of the nodes' role); authority (read
                whole), agents, grants, policies, holds, entitlements (what one caller has of them), sight (who may
                still watch), approvals (the inbox), meant (what words are about); import_v0 (v0_run, v0_history)
                brings v0's data over
    fabric/     Redis, its keys and scripts: primary, line, inbox and doorbell, waiting, lease, role,
                ready, bus, generation, nudge
    runtime/    actor (a value), host (the turn loop), authority (the book of grants, policies and holds), learning (who
                waits for it), sender (the permit), afterwards (letters deleted, watchers told by ``telling``), awake,
                ownership, dispatch, hearing (an ``ingest`` for each Gateway), strays, catalogue, returns, sweep, looks,
                presence; ``ports`` between; ``runner`` puts them together
    issuer.py   the identity provider: its JWK Set, fetched with bounds, kept and renewed
    auth/       who is asking, decided from what is passed in: caller (roles), keys, claims, tokens (JWT), tickets,
                service_tokens; and what they may do: access (bindings, grants, policies, holds)
    api/        app (all routes, each with its declaration), gate, callers (who asks), service_tokens, workflows, runs,
                decisions, approvals, bulk, verdicts, feed, stream, watches (whose streams end), audit, ops; agents,
                grants, agent_tokens, policies, holds: who may do what (permits: who not; rights: who decides), over
                reach, which asks the Gateways and calls no tool; contract, intake, answers and openapi make a
                declaration validate and document; pages, selection, repeats (Idempotency-Key) and refusals (403s, to
                the audit) are shared; ``front`` puts them together, ``server`` answers what is no HTTP
    dev/        embedded servers, the dev Gateway and its MCP agent; for ``runwarden dev``, ``demo`` and tests
    cli/        the commands; those about workflows and runs talk HTTP only
    node.py     the composition root; config, addresses, errors, faults, counting, telemetry are small and stand alone

``gateway_client``, beside the daemon, knows the Gateways' wire: ``gateways`` calls each agent at the one that holds it.

Imports go down only and are checked (``make check``): cli › dev › node › api | runtime › store | fabric | issuer ›
auth › machine › telemetry › config | counting › addresses | faults › errors. The front and the actors never import one
another: they meet in Postgres and Redis.


The laws
--------
1. The machine is pure. ``now`` is an argument: Postgres time in epoch milliseconds, carried between exchanges on the
   monotonic clock (``runtime/clock``), never behind the last event.
2. Persist, then speak. A turn reads the whole inbox and the open command rows, folds them, commits everything at once;
   then dispatches, deletes exactly the letters folded, publishes. All of that is repeatable: commands are rows, the
   first RESULT wins, CHUNKs carry (term, number).
3. The lease is a courtesy, the fence is the law: every commit says WHERE id, epoch, owner, and where the log ends. A
   batch of which one run does not pass is refused whole. That, or a lost reply, is followed by reading where the run
   stands: mine and advanced, it was committed; mine and unchanged, repeat; else fenced: drop the actor and whatever it
   had not sent. A log shorter than what its owner has committed means that Postgres lost commits: the run is parked
   (``store/quarantine`` says why that is safe).
4. A person's word is a committed row before it is acknowledged. Bells carry nothing.
5. The actor is the only decider. A handler submits and waits for a verdict. A command names the pause it saw; at
   another pause it is refused.
6. Effects are derived from the state, never queued. The actor remembers only what it asked for under its own claim.
7. Never a tool twice without knowing. The intent is committed with its epoch before the call; only that epoch owes
   ``Invoke``, any later one owes ``Inquire``. With the connection in hand, before the first byte, dispatch asks the
   permit: lease renewed less than TTL/2 ago, still ours, still owed. A proof that nothing was sent lets the same
   attempt be intended again; each proof names the send it denies (``tries``). An intent whose lease is not fresh has
   its proof in the same commit: by itself it could be lost with the run.
8. Signals are hints, state is truth, the sweep repairs: due, orphaned, commanded runs are marked ready.
9. Waiting costs nothing: after a short linger a waiting run leaves memory, its lease first, then ``owner``.
10. Terminal is for ever, by trigger. Late evidence is appended and moves no status.
11. A bound on everything; what overflows is dropped in a named order (CHUNKs first, a RESULT never) and counted.
12. Taste is a failing test (``tests/test_tidy.py``, the import contracts).


What stands about a call
------------------------
Who may do what is changed by people while runs go on, so it is asked as late as can be, three times:

1. Before every intent, as a fact of the turn. ``Ground``: may the run's user make the call, is it held, what is the
   tool like, who decides on it. A run acts with the groups and the admin's rights of the token that created it (its
   ``principal``), not with what that user has become; there stands too who made that token, if it is a service token,
   and the one that the workflow was saved with (``workflow_makers``), since ``forbid_self`` means them as well. Where
   no ground is known the run waits for it, and only that run. What forbids the call pauses the run:
   ``agent_unauthorized`` until somebody resumes it, ``held`` until the hold ends.
2. In the commit. Bindings, grants, policies and holds have one version, raised in the transaction that changes any of
   them (``authority_version``). A commit that rests on them names the version that its turn went by; at another,
   Postgres moves nothing (``Outcomes.outdated``), and the turn is made anew by what stands now. So what a node
   remembers (``runtime/authority``) need not be fresh, only honest about its version; hints and periods only make it
   quick. A version is at least the moment of its change, so that one whose commit a failover lost is no other's.
3. In the permit, just before the bytes: nothing has come to bar or hold the call by a version that was known to stand a
   moment ago (so a hold is certain a moment after it was said, and answered then), and the digest over exactly what is
   about to be sent is the approved one.

What waits for approval is a *revision*: the call, frozen, with a digest over its canonical JSON. Votes belong to it; an
edit, or a verdict on this call that has become stricter, makes the next one, and nobody has voted on that. Whether
votes count is asked by today's grants, each time. A person's word is a command like any other; ``decide_approval``
weighs it, by the time at which it was written down: one that was on disk before the approval expired counts, so whoever
is about to say that it has expired reads the commands first (``host``).

Tables: ``agent_bindings``, ``agent_grants``, ``tool_policies``, ``holds``; ``workflow_run_approvals``, a row for each
revision, for ever; ``workflow_run_specs.principal``; ``audit_log``, which nobody rewrites. Each is written in the
transaction of what it tells of.


Where this differs from the first design, and why
-------------------------------------------------
* ``wake_at`` is written when a run is let go, not in every commit. A resident's deadline is an alarm in its node; if
  the node dies its runs are orphans, which the sweep finds without ``wake_at``. In return the commits of a step touch
  no indexed column and stay heap-only (HOT).
* Answers of our own dispatch (202, refused, uncertain) reach the actor in memory, not through Redis. They are of no
  use to any other owner: after a crash the attempt is inquired whatever they said. It saves a round trip a step.
* Letters for a run that the hearing node holds reach it in memory too; its inbox in Redis is for the letters of others,
  and read when a bell or an alarm says so. That saves four of five exchanges with Redis a step, a tenth of the node's
  CPU and a third of a millisecond before the next call. What is given up is small: a node that is killed takes with it
  what it had heard and not committed (milliseconds). A second node's standby memory has it; what came while nobody
  heard at all is asked for, about each call in flight, by whoever hears next. A run that is let go, or lost, leaves
  such letters to its inbox (``runtime/strays``), so a stale owner still deletes nothing.
* What every step asks of Redis goes over one connection of our own making (``fabric/line``): a pipeline of redis-py
  costs more CPU than all that it carries. redis-py opens that connection and does everything rarer.
* An invoke for which a place and a connection are free is written at once, without a task (``invoke_at_once``).
* Postgres tells the attempts of a run as the JSON that a GET answers (``store/runs``), so that shape stands there, not
  in ``api/shapes``: made in the node, an answer of 400 steps held its loop for 4 ms.
* The grouped commit takes arrays of rows, not of columns (types of ``schema/0009``), and moves the runs by one fenced
  UPDATE; the rest need not ask whose run has moved, since a batch moves whole or not at all. Its plan is generic, as it
  depends on nothing in a batch, by index, and made anew each half minute: the best for ten runs is none for thousands.
* Watchers are told beside the runs, which do not wait for it (``runtime/telling``), and whole events only of runs that
  somebody listens to: whoever begins to listen is sent to the log by the first word, and hears all after it.
* A node that carries one run alone, in quick steps, polls for the answers of its commits (``runtime/awake``): a
  quarter of such a step was processes waking up with cold caches. It costs CPU for so long. Its watchers hear of a step
  while the next one's commit is under way, two milliseconds later at most: the node has nothing else to do then.
* Metrics are counted by values of our own (``counting``) and told by prometheus_client, whose locks took 50 µs a step.
* ``hear`` stands beside ``decide``: letters come in batches and get no verdict, commands come alone and get one each.
* Revisions are rows of their own, not parts of the log: the inbox must find what waits by who is asked, and a claim
  must know the newest without reading events. The events tell the same, and replaying them builds it
  (``StepPaused.revision``).
* The log keeps the events of a commit as one row, a page: five rows a step took a fifth of the WAL. People, and nodes
  of the release before, read it by the view ``workflow_run_events``, a row an event (``schema/0022``, ``store/log``).
* Of a run that takes quick steps alone most commits are *appended*: one INSERT of a page, which also names what it
  changes of the run's row, its steps and attempts. Those are written at *checkpoints*, as databases do it: by one
  commit of nine, by any that does more than go on, and by a trigger a fifth of a second after the last one and whenever
  the run changes hands, also between nodes of two releases (``store/tail``, ``schema/0024``). It halves Postgres' part
  in such a step. An append is fenced as every commit is: it holds the row against claims, asks for epoch and owner,
  and for the page before it, which a failover may have lost. Who reads a run reads it as its log stands
  (``workflow_run_heads``, ``store/ahead``); only whoever asks the tables themselves may find them that much behind.
* Which runs call an agent is a table of its own (``schema/0025``), written by a trigger as a run is created: a list of
  an agent opened the snapshots of all the user's runs, a second at 200,000. Which index a list goes down is measured as
  it is asked, not guessed by the planner (``store/matching``).
* An approval is voided by what has become stricter about this one call, never by a version that has moved: else each
  grant anywhere would ask everybody anew.
* ``held`` is a pause, not a wait in memory: it is seen, survives its node, costs nothing, and whoever reads that a hold
  is over wakes what was held (``wake_held``).
* ``record`` turns events into rows purely, so that adding an event stays in ``machine/``.
* Three events were added to the list of v1 because replaying the log must rebuild the state: ``tool.sent`` (202, but
  no acknowledgement within the hold), ``tool.unsent`` (proof that nothing left), ``tool.canceling`` (we ask the agent
  to stop).
* The sweep finds a dead node's runs by that node's beacon, one key a node, and looks at every single lease only each
  fifth period: asking for each lease of ten thousand residents in each period cost more than it may.
* A lease that had vanished and was taken again proves nothing: another node may have had the run in between. Until
  Postgres says that the claim stands, the run is in doubt, sends nothing and is not let go.
* Letters that lead to nothing are deleted only after Postgres was asked whether the claim stands: such a turn commits
  nothing, so no fence guards it, and what means nothing to an old state may be news to the present one.
* The agent is given our deadline plus five seconds: ours decides, the agent's own is the backstop. With equal times
  its RESULT would race our CANCEL and turn plain timeouts into unknown outcomes.
* While a cancel is under way the result store is asked once more, whoever intended the call: a RESULT that the event
  stream dropped then still settles the attempt before the grace ends.
* ``unknown`` is the one verdict that may still move. A RESULT that comes while the run stands still for it settles it
  (``AttemptSettled``, told as ``tool.evidence`` with ``settles``) and the run goes on by itself; after a person's word
  the same RESULT is evidence.
* ``effects`` and ``deadline`` take ``now``: an attempt is looked at again at 30 s of age, then at twice the age each
  time, for a day. That follows from its age, so nothing is stored and any owner owes the same look.
* A look needs no owner. Of a passive run that owes nothing else the sweep's node asks the result store itself
  (``runtime/looks``): a RESULT goes to the inbox, else ``wake_at`` moves on, fenced by epoch, owner and its own old
  value. 10,000 runs that wait for their tools cost 2 % of a core so, and 15 % when each was claimed to be looked at.
* Whether a tool is harmless to repeat is a fact that may be missing (``runtime/catalogue`` learns it beside the calls).
  Missing means no: then a person is asked.
* The machine's values are msgspec structs, not dataclasses: ``replace`` costs a fifteenth. ``hear`` and ``settle``
  answer each event with the state it led to, so that ``record`` need not fold it a second time.
* Two rooms import redis: ``fabric`` for ours, and ``gateway_client/registry`` for the Gateways' own, which belongs to
  them; only the versions of agents' tokens are written there. One room for each outside world.
* Several Gateways: an ear for each, and one for their Redis. RESULTs and ACKs are taken from both, since a repeat is
  nothing and each ear is deaf in its own way; CHUNKs from the event streams alone, or each line would be logged twice
  (``runtime/hearing``). Whether somebody listens is asked for the Gateway of the agent in question, so that one Gateway
  that is away stops no run on another.
* INVOKE_FAILED proves nothing: we send no commands through Redis, so it speaks of somebody else's. It is counted, and
  the agent is looked for anew (``runtime/ingest``).
* The 404 of one Gateway is followed by one look at all of them and, if another has the agent, by the call there, under
  the same intent: the 404 proved that nothing was sent, and the permit is asked again before the bytes are written.
* A call that waits for a place at a busy agent is not begun, and after half the acknowledgement's time it is unsent
  (``agent_busy``) rather than silent: so a frozen agent costs its own runs their patience and its neighbours nothing.
* Letting a run go is fenced by ``last_seq`` as well, and a node remembers what it let go lately: else a run would turn
  passive, or be taken again, in a state that it has left behind.
* Another Redis server (a failover, a restart with its file) may have every lease and not the last letters, so no
  renewal tells: each node compares the server's ``run_id`` in its sweep's period and asks about its calls in flight.
* A RESULT that comes while a run is parked settles an unknown outcome too; the run goes on by it once it is resumed.
* A run parked because commits were lost is resumed with ``confirm: run_again`` only, as one with an unknown outcome.
* A letter that Postgres refuses is found by turns: one without any letter, then the letters singly. What fails without
  a letter is the run's own and parks it; its letters stay for the day when it is resumed.
* A takeover is counted until the next commit or release (``recoveries``). After two the next one waits, 4 s doubling to
  60 s, by ``wake_at`` of an owned run: what kills its node must not fell the fleet.
* Whatever Postgres says that is neither a refusal nor understood counts as "away": it is logged and tried again.
* An approval that is more than v0's bare word (somebody is named, ``forbid_self``, a digest, policy) is good for one
  call that may have run; another is approved anew. What was surely not sent, and what the engine repeats because it is
  harmless, goes as it was approved.
* Whoever has no say in a call is turned away by the handler (``api/rights``), by the actor's own rule and what Postgres
  has at that moment: they must hear that before anything of the run's state or of the tool's schema, and an actor knows
  only what stands about the step it is at. It is no decision: whoever is let through is weighed again, by the actor.
* Edited arguments are validated in a process of its own (``api/schema_check``): a schema is an agent's word, and a few
  lines of it can keep a validator busy for ever.


How to …
--------
* add an event: a class in ``machine/events``, a branch in ``evolve`` and ``wire``, and who emits it (``hear``,
  ``decide`` or a rule of ``settle``). Nothing outside ``machine/`` and its tests.
* add an effect: a class and a line in ``machine/effects``, a branch in ``runtime/dispatch``.
* add an endpoint: a handler, a line in ``api/app``.
* add a setting: a field with its unit and reason in ``config``, then ``make docs``.
* add a metric: a line in ``telemetry``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("runwarden")
except PackageNotFoundError:  # run from a tree that was never installed
    __version__ = "0.0.0"
