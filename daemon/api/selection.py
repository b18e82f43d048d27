"""Which runs are meant, in a list's query and in a bulk decision alike."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from daemon.api.intake import Id, Line, Moment
from daemon.machine.events import PausedReason
from daemon.machine.state import RunStatus
from daemon.store.matching import Filter


class Selection(BaseModel):
    """What runs may have in common. What nobody knows is refused: a misspelt filter must not mean everything."""

    model_config = ConfigDict(extra="forbid", strict=True)

    status: Annotated[list[RunStatus], Field(min_length=1)] | None = None
    paused_reason: Annotated[list[PausedReason], Field(min_length=1)] | None = None
    workflow_id: Id | None = None
    agent_id: Line | None = Field(None, description="Some step calls this agent.")
    created_after: Moment | None = Field(None, description="Created then or later.")
    created_before: Moment | None = Field(None, description="Created earlier.")

    def filter(self, **more: Any) -> Filter:
        """In the store's words; ``more`` wins."""
        said: dict[str, Any] = {
            "statuses": self.status,
            "paused_reasons": self.paused_reason,
            "workflow_id": self.workflow_id,
            "agent_id": self.agent_id,
            "created_after": self.created_after,
            "created_before": self.created_before,
        }
        return Filter(**said | more)
