"""Who may let a call run, told anew from the issue and from nothing in the daemon; and a story that is watched by it.

``Watched`` notes every yes that was not refused, with the revision that it was about, and judges each call at the
moment when it is owed. Used by the properties of approvals.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from daemon.machine.commands import Command, Letter, ReqId
from daemon.machine.decision import Refusal
from daemon.machine.effects import Invoke
from daemon.machine.events import StepExpired
from daemon.machine.ground import Barred, Ground, Risk, Traits
from tests.machine.grounds import Said
from tests.machine.scenario import Story, spec

OWNER = "ann"
BACKSTOP_MS = 5_000
"""How much later than the call's own deadline the agent is told to stop."""
ORDER: Sequence[Risk] = ("low", "medium", "high")


class Unapproved(AssertionError):
    """A call is owed that those who may have not agreed to."""


@dataclass(slots=True)
class Standing:
    """What stands about every call, as a test has it; each field is changed at will."""

    risk: Risk = "medium"
    writes: bool = True
    requires: bool = False
    barred: bool = False
    held: bool = False
    schema: str | None = "a"
    deciders: frozenset[str] = frozenset()

    def ground(self) -> Ground:
        return Ground(
            traits=Traits(risk=self.risk, writes=self.writes, requires_approval=self.requires),
            barred=Barred("agent_unauthorized", "not yours") if self.barred else None,
            held="somebody holds it" if self.held else None,
            deciders=self.deciders,
            schema_hash=self.schema,
        )


class Yes(NamedTuple):
    """A person's agreement to one revision."""

    by: str
    groups: tuple[str, ...]
    digest: str | None
    bare: bool
    """Said by ``resume``."""


class Frozen(NamedTuple):
    """What stood when a revision was made, and who made it by an edit."""

    risk: Risk
    writes: bool
    schema: str | None
    editor: str | None


def digest(*, agent: str, tool: str, schema: str | None, arguments: Mapping[str, Any], timeout_ms: int) -> str:
    """As RFC 8785 has it for texts and small integers."""
    call = {
        "agent_id": agent,
        "tool_name": tool,
        "schema_hash": schema,
        "arguments": arguments,
        "timeout_ms": timeout_ms,
    }
    text = json.dumps(call, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def may_decide(
    terms: Mapping[str, Any], now: Standing, by: str, groups: Sequence[str], makers: Collection[str | None] = ()
) -> bool:
    mine = {f"user:{by}", *(f"group:{group}" for group in groups)}
    named = set(terms.get("approvers", ()))
    if terms.get("forbid_self") and by in (OWNER, *makers):
        return False
    if now.requires:
        return bool(mine & now.deciders) and (not named or bool(mine & named))
    return bool(mine & named) if named else by == OWNER


@dataclass(slots=True)
class Book:
    """What was said of each revision: (step, number)."""

    frozen: dict[tuple[int, int], Frozen] = field(default_factory=dict)
    said: dict[tuple[int, int], list[Yes]] = field(default_factory=lambda: defaultdict(list))
    called: dict[tuple[int, int], str] = field(default_factory=dict)
    """The newest call that went by it."""


class Watched(Story):
    """A story of steps with these terms (None: no approval asked), whose every owed call is judged."""

    def __init__(
        self,
        terms: Sequence[Mapping[str, Any] | None],
        steps: Sequence[dict[str, Any]],
        standing: Standing,
        token_maker: str | None = None,
        spec_maker: str | None = None,
    ) -> None:
        self.terms = terms
        self.standing = standing
        self.book = Book()
        self.judged: set[tuple[str, int]] = set()
        super().__init__(
            workflow=spec(*steps),
            user=OWNER,
            token_maker=token_maker,
            spec_maker=spec_maker,
            grounds=Said(lambda agent_id, tool_name: self.standing.ground()),
        )

    def turn(self, letters: Sequence[Letter] = (), commands: Sequence[Command] = ()) -> list[Refusal | None]:
        asked, before = self.run.approval, len(self.log)
        refusals = super().turn(letters, commands)
        for command, refusal in zip(commands, refusals, strict=True):
            waits = asked is not None and asked.state == "open"
            if refusal is None and asked is not None and waits and command.kind in ("approve", "resume"):
                yes = Yes(command.issued_by, command.who.groups, command.digest, command.kind == "resume")
                self.book.said[asked.step_index, asked.number].append(yes)
        if asked is not None and any(isinstance(event, StepExpired) for _, event in self.log[before:]):
            self.book.said[asked.step_index, asked.number].clear()
        if (revision := self.run.revision) is not None:
            said = zip(commands, refusals, strict=True)
            editor = next((one.issued_by for one, refusal in said if one.kind == "edit" and refusal is None), None)
            new = Frozen(self.standing.risk, self.standing.writes, self.standing.schema, editor)
            self.book.frozen.setdefault((revision.step_index, revision.number), new)
        for effect in self.owed:
            if isinstance(effect, Invoke) and (effect.req_id, effect.tries) not in self.judged:
                self.judged.add((effect.req_id, effect.tries))
                self._judge(effect)
        return refusals

    def _check(self, *_: Any) -> None:
        """What holds of all stories is checked in others: here are many, and they are to be quick."""

    def _judge(self, call: Invoke) -> None:
        """At the moment of the intent: all that this call needed, it has."""
        now, index = self.standing, self.run.step_index
        terms = self.terms[index]
        if now.barred or now.held:
            raise Unapproved("barred or held")
        if terms is None and not now.requires:
            return
        terms, revision = terms or {}, self.run.revision
        if revision is None or revision.step_index != index:
            raise Unapproved("nothing was ever asked")
        place = (index, revision.number)
        frozen = self.book.frozen[place]
        exactly = digest(
            agent=call.agent_id,
            tool=call.tool_name,
            schema=frozen.schema,
            arguments=call.arguments,
            timeout_ms=call.timeout_ms - BACKSTOP_MS,
        )
        if call.approved != exactly or not call.as_approved:
            raise Unapproved("another call than the one that was shown")
        if ORDER.index(now.risk) > ORDER.index(frozen.risk) or (now.writes and not frozen.writes):
            raise Unapproved("it has become worse")
        if None not in (now.schema, frozen.schema) and now.schema != frozen.schema:
            raise Unapproved("the schema has changed")
        strict = terms.get("quorum", 1) > 1 or terms.get("allow_edit", False) or frozen.risk == "high"
        agreed = {
            yes.by
            for yes in self.book.said[place]
            if may_decide(terms, now, yes.by, yes.groups, (self.run.token_maker, self.run.spec_maker))
            and (yes.digest == exactly or (yes.digest is None and not strict))
            and not (yes.bare and (strict or terms.get("forbid_self")))
            and not (terms.get("forbid_self") and yes.by == frozen.editor)
        }
        if len(agreed) < terms.get("quorum", 1):
            raise Unapproved(f"{sorted(agreed)} are too few")
        if strict or terms.get("approvers") or terms.get("forbid_self") or now.requires:
            self._judge_once(call, place)

    def _judge_once(self, call: Invoke, place: tuple[int, int]) -> None:
        """What others agreed to, or by its digest, is one call: another only if that one surely did not leave."""
        before = self.book.called.get(place)
        if before is not None and before != call.req_id:
            attempt = self.run.find(ReqId(before))
            if attempt is None or attempt.state != "unsent":
                raise Unapproved("two calls by one approval")
        self.book.called[place] = call.req_id
