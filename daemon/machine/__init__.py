"""The pure room: what a run is, what may happen to it, and what therefore follows.

Laws of this room:

1. Nothing here awaits, reads a clock, draws a random number, logs or touches the world. Time is an argument
   (``now``: Postgres time in epoch milliseconds).
2. What may happen stands in literal tables (``state.RUN_MOVES``, ``STEP_MOVES``, ``ATTEMPT_MOVES``); what follows from
   what happened is ``settle``, run to a fixed point.
3. State changes through ``evolve(run, event)`` only, so replaying a log rebuilds the run.
4. Effects and deadlines are read off the state, never stored.

The data's way: ``spec`` (what was asked) → ``commands`` (what people and Gateways say) → ``decide`` and ``hear``
(events, or a refusal) → ``settle`` (what therefore follows) → ``evolve`` (the next state) → ``effects`` (what is owed
to the world) and ``wire`` (rows and JSON). To add an event: a class in ``events``, a branch in ``evolve``, a payload in
``wire``, and who emits it.
"""
