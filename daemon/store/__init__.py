"""Postgres: the room that remembers. The only importer of asyncpg; all SQL stands here.

``pool`` opens and waits, ``journal`` commits transitions (one statement for many runs, fenced), ``claims`` takes and
lets go of runs, ``runs``, ``workflows``, ``commands`` and ``log`` are what the API reads and writes, ``migrate``
applies ``schema/``. Nobody here decides anything.
"""
