"""The room that speaks: HTTP and SSE on aiohttp. Never writes a run's state and never imports ``runtime``.

``app`` holds the whole route table; ``gate`` stands before every handler (trace, limits, who is asking, errors →
problem+json); ``workflows``, ``runs`` and ``decisions`` are the resources; ``verdicts`` waits for actors, ``feed`` and
``stream`` tell watchers; ``ops`` is for the operator.
"""
