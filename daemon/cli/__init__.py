"""The command line. Thin: what concerns workflows and runs talks HTTP only, as any other client would.

``root`` is the table of commands; ``operate`` (serve, migrate, quarantine, config, token) and ``pretend`` (dev, demo)
are for whoever runs nodes, ``importing`` brings v0's data over. ``workflow``, ``run``, ``decide`` and ``service_token``
are for people and scripts: ``connection`` says where and as whom (``profiles``), ``client`` speaks, ``watch`` follows,
``show`` prints, ``exits`` says what exit codes mean (docs/cli.md). The rooms are imported by the commands that need
them: all of them together cost seconds, and ``--help`` should not.
"""

from daemon.cli.root import main

__all__ = ["main"]
