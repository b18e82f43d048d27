"""Postgres: the room that remembers. The only importer of asyncpg; all SQL stands here.

``pool`` opens and waits, ``journal`` commits transitions (one statement for many runs, fenced), ``claims`` takes and
lets go of runs (``loading`` reads them), ``quarantine`` parks those whose database is older than they are, ``poison``
keeps letters that no run could take, ``runs``, ``workflows``, ``commands`` and ``log`` are what the API reads and
writes (``matching`` finds the runs of a list, ``once`` is for clients that may repeat themselves), ``migrate`` applies
``schema/``. Nobody here decides anything.
"""
