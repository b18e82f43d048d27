"""``python -m daemon`` is ``runwarden``."""

from daemon.cli import main

main()
