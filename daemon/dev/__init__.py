"""The world that ``dev``, ``demo`` and tests run against: real servers and a Gateway, all on this machine.

    embedded   PostgreSQL and Valkey as child processes     (processes: locks, signals, accounts)
    gateway    the dev Gateway over HTTP                    (subscriber: SSE; replies: answers; envelope: JSON)
    tunnel     an agent's end of it: calls                  (chunks: their output)
    weather    the oddities of both, by name                (mischief: what follows an event)
    agent      what an in-process agent is                  (scripted_agent: for tests; mcp_agent: real MCP servers)
    workbench  an MCP server of our own, for the demo       (example: the demo's configuration and workflow)
    stack      all of that and a node, started and ended    (foreground: ``runwarden dev``)
    demo       ``runwarden demo``: a client of the API      (sse; story: what happened; plain, screen, keyboard)

Imported only by ``daemon/cli`` and tests; ``serve`` never loads it. ``stack`` starts a node, ``demo`` speaks to its
API; the rest knows nothing of runs.
"""
