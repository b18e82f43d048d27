"""What stands about calls, said by a test: by default everybody may call everything, and nothing is known of tools."""

from __future__ import annotations

from collections.abc import Callable

from daemon.machine.ground import Ground


class Said:
    """Grounds as ``say`` has them; ``version`` is the test's to raise."""

    def __init__(self, say: Callable[[str, str], Ground | None] | None = None) -> None:
        self.version = 1
        self.say = say or (lambda agent_id, tool_name: Ground())

    def of(self, agent_id: str, tool_name: str) -> Ground | None:
        return self.say(agent_id, tool_name)
