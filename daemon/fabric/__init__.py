"""Redis: the room that carries. The only importer of redis; all keys stand in ``keys``, all scripts in ``lua/``.

``client`` opens and waits, ``primary`` knows whom to speak to (a URL's server, or whom Sentinels name), ``inbox`` holds
letters and rings, ``lease`` says who tries to own what, ``role`` who does what only one may do, ``ready`` offers runs
without an owner, ``bus`` tells watchers, ``generation`` knows whether Redis forgot. Everything here may be lost at any
moment: signals are hints, and what counts is in Postgres.
"""
