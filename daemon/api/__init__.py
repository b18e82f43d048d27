"""The room that speaks: HTTP and SSE on aiohttp. Never writes a run's state and never imports ``runtime``.

``app`` holds the whole route table, each line a declaration (``contract``) by which requests are read (``intake``) and
the API is told (``openapi``, ``docs``; ``answers`` are the models of what it says). ``gate`` stands before every
handler (trace, limits, who is asking, errors → problem+json). ``workflows``, ``runs``, ``decisions`` and ``bulk`` are
the resources; ``selection`` and ``pages`` are what lists share, ``repeats`` reads ``Idempotency-Key``, ``shapes``
writes answers.
``verdicts`` waits for actors, ``feed`` and ``stream`` tell watchers; ``ops`` is for the operator.
"""
