"""The card of a call that waits for approval, in lines of text: what would be done, how risky it is, who must agree.

``demo``, ``run watch`` and the commands show it, from whichever of the API's answers they have: an event's payload, a
run or an item of the inbox. Everything on it is made harmless for a terminal. What was shown is what its digest names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from daemon.dev.story import clean

Card = Mapping[str, Any]
"""The fields of a revision as the API tells them; ``votes`` are names, or objects with ``by``."""


def of_run(run: Mapping[str, Any]) -> Card | None:
    """The card of what a run waits for; None where none waits, or what exactly is only being found out."""
    steps, index = run["workflow_snapshot"]["steps"], run["current_step_index"]
    if run["status"] != "paused" or run["paused_reason"] != "awaiting_approval" or index >= len(steps):
        return None
    step = steps[index]
    approval = run["steps_state"].get(step["id"], {}).get("approval")
    if approval is None or approval["state"] != "open":
        return None
    terms = {name: word for name, word in (step.get("approval") or {}).items() if name != "approvers"}
    card: dict[str, Any] = {**terms, **approval}
    if card["arguments"] is None:
        card["arguments"] = step["tool_config"].get("arguments") or {}
    return card


def lines(card: Card) -> Iterator[str]:
    """The card, most important first; its last line is the digest, alone, so that it can be copied."""
    yield f"{_plain(card['tool_name'])} on {_plain(card['agent_id'])}   {traits(card)}"
    yield from arguments(card)
    if card.get("instructions"):
        yield from (f"│ {line}" for line in clean(card["instructions"]).splitlines())
    yield from people(card)
    if card.get("edited_by"):
        yield f"edited by {_plain(card['edited_by'])}: revision {card['revision']}"
    if card.get("expires_at") is not None:
        then = "then it is rejected" if card.get("on_expiry") == "reject" else "then its votes are dropped"
        yield f"to be decided by {moment(card['expires_at'])}; {then}"
    yield str(card["digest"])


def arguments(card: Card) -> Iterator[str]:
    """Each argument on its line; the beginning of them all where they are too long for an event."""
    given = card.get("arguments")
    if given is None:
        yield f"  {_plain(card.get('arguments_preview') or '')} …"
        yield "  (cut here: `runwarden run show` has them whole)"
        return
    widest = max(map(len, given), default=0)
    for name, value in given.items():
        yield f"  {_plain(name):<{widest}}  {_plain(json.dumps(value, ensure_ascii=False))}"


def traits(card: Card) -> str:
    """The risk, and what it comes from."""
    words = [f"{card['risk']} risk", "writes" if card["writes"] else "read-only"]
    words += ["open world"] if card["open_world"] else []
    words += ["policy requires approval"] if card["requires_approval"] else []
    return ", ".join(words)


def people(card: Card) -> Iterator[str]:
    """Who is asked, and who has agreed so far."""
    named = " or ".join(_plain(one) for one in card["approvers"])
    if card["requires_approval"]:
        asked = "the agent's owner, or whom they let approve" + (f"; of these {named}" if named else "")
    else:
        asked = named or "whoever started the run"
    but = "; not whoever started the run" if card.get("forbid_self") else ""
    yield f"asked: {asked}{but}"
    votes = ", ".join(_plain(vote if isinstance(vote, str) else vote["by"]) for vote in card["votes"])
    if card["quorum"] > 1 or votes:
        yield f"{len(card['votes'])} of {card['quorum']} have agreed" + (f": {votes}" if votes else "")


def _plain(text: str) -> str:
    """On one line, so that no name can pretend to be another line of the card."""
    return clean(text).replace("\n", " ").replace("\t", " ")


def moment(at_ms: int) -> str:
    """A time of the API's (epoch ms), to the second."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
