"""Bindings and the versions of tokens: one owner at any moment, and no version that ever comes back."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
import uuid_utils.compat as uuid7
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from daemon.auth.caller import Origin
from daemon.errors import Conflict, NotFound
from daemon.store.agents import Agents
from daemon.store.entitlements import Entitlements
from daemon.store.grants import Grants
from daemon.store.holds import Holds
from daemon.store.policies import SAYS, Policies
from daemon.store.pool import Pool

ROOT = Origin(actor="root")
ANN = Origin(actor="ann")
USERS = ("ann", "bob")


async def _authority(pool: Pool) -> int:
    version: int = await pool.fetchval("SELECT version FROM authority_version")
    return version


async def test_who_is_bound_at_once_to_two_is_ones(pool: Pool) -> None:
    agents = Agents(pool)
    done = await asyncio.gather(*(agents.bind("a", user, ROOT) for user in USERS * 3))
    assert done.count("bound") == 1
    assert await pool.fetchval("SELECT count(*) FROM agent_bindings") == 1
    told = await pool.fetch("SELECT action FROM audit_log ORDER BY id")
    assert len(told) == len(done) - done.count("unchanged")


async def test_whoever_comes_too_late_waits_for_nobody_who_waits_for_them(pool: Pool) -> None:
    """Of two who bind at once one has the binding locked, the other, by its INSERT that came too late, the version of
    authority; each needs both. Told often enough to deadlock otherwise."""
    agents = Agents(pool)
    for n in range(40):
        bound = (agents.bind(f"a{n}", user, ROOT) for user in USERS * 2)
        minted = (agents.mint(f"a{n}", user, Origin(actor=user), reset=False) for user in USERS)
        done = await asyncio.gather(*bound, *minted, return_exceptions=True)
        assert not [one for one in done if isinstance(one, Exception) and not isinstance(one, Conflict)]


async def test_of_many_who_transfer_what_was_theirs_one_does(pool: Pool) -> None:
    agents = Agents(pool)
    await agents.bind("a", "ann", ROOT)
    asked = (agents.bind("a", f"u{n}", Origin(actor="ann"), owned_by="ann") for n in range(5))
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert done.count("transferred") == 1
    assert all(isinstance(one, NotFound) for one in done if one != "transferred")


async def test_a_version_of_authority_that_was_lost_is_never_another_ones(pool: Pool) -> None:
    """A transaction that is rolled back stands for commits that a failover lost: nodes may have read its version, and
    must not take for it what is said afterwards."""
    before = await _authority(pool)
    async with pool.acquire() as connection:
        losing = connection.transaction()
        await losing.start()
        await connection.execute("INSERT INTO agent_bindings (agent_id, owner, bound_by) VALUES ('a', 'ann', 'root')")
        lost = await connection.fetchval("SELECT version FROM authority_version")
        await losing.rollback()
    assert await _authority(pool) == before < lost
    await Agents(pool).bind("b", "bob", ROOT)
    assert await _authority(pool) > lost


async def test_nothing_that_changes_nothing_raises_the_version_of_authority(pool: Pool) -> None:
    agents, holds, grants = Agents(pool), Holds(pool), Grants(pool)
    await agents.bind("a", "ann", ROOT)
    held = await holds.hold(hold_id=uuid7.uuid7(), scope="agent", target="a", reason="r", by_admin=True, origin=ROOT)
    assert await grants.revoke("a", uuid7.uuid7(), ROOT, owned_by=None) is None  # a DELETE is a statement all the same
    before = await _authority(pool)
    await agents.bind("a", "ann", ROOT)
    await agents.mint("a", "ann", ROOT, reset=False)
    await agents.mint("a", "ann", ROOT, reset=True)
    await agents.unbind("b", ROOT)
    again = await holds.hold(hold_id=uuid7.uuid7(), scope="agent", target="a", reason="s", by_admin=False, origin=ANN)
    assert again == held
    with pytest.raises(Conflict):
        await agents.mint("a", "bob", ROOT, reset=True)
    assert await _authority(pool) == before
    await agents.unbind("a", ROOT)
    assert await _authority(pool) > before


async def test_who_owned_an_agent_neither_holds_nor_releases_it(pool: Pool) -> None:
    """Whoever was its owner when they asked: what is on its way while the agent goes over is too late."""
    agents, holds = Agents(pool), Holds(pool)
    await agents.bind("a", "ann", ROOT)
    held = await holds.hold(hold_id=uuid7.uuid7(), scope="agent", target="a", reason="r", by_admin=False, origin=ANN)
    await agents.bind("a", "bob", ANN, owned_by="ann")
    with pytest.raises(NotFound):
        await holds.release(held.id, ANN, as_admin=False)
    assert await holds.get(held.id) == held
    await holds.release(held.id, Origin(actor="bob"), as_admin=False)
    with pytest.raises(NotFound):
        await holds.hold(hold_id=uuid7.uuid7(), scope="agent", target="a", reason="r", by_admin=False, origin=ANN)
    assert await pool.fetchval("SELECT count(*) FROM holds WHERE released_at IS NULL") == 0


WORDS = st.lists(
    st.tuples(st.sampled_from(["bind", "mint", "reset", "unbind"]), st.sampled_from(USERS)), min_size=1, max_size=14
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=WORDS)
async def test_no_token_is_good_again_once_it_was_ended(pool: Pool, words: list[tuple[str, str]]) -> None:
    """Whatever is done in whatever order: what ended a user's tokens ended each of them for good."""
    agents, agent_id = Agents(pool), f"agent-{uuid7.uuid7()}"
    owner: str | None = None
    good: set[tuple[str, int]] = set()
    ended: set[tuple[str, int]] = set()
    for word, user in words:
        if word == "bind" and user != owner:
            await agents.bind(agent_id, user, ROOT)
            ended |= good
            good, owner = set(), user
        elif word == "unbind":
            await agents.unbind(agent_id, ROOT)
            ended |= good
            good, owner = set(), None
        elif word in ("mint", "reset"):
            try:
                version, _ = await agents.mint(agent_id, user, Origin(actor=user), reset=word == "reset")
            except Conflict:
                assert owner != user
                continue
            owner = owner or user
            assert owner == user
            if word == "reset":
                ended |= {token for token in good if token[1] != version}
                good = {token for token in good if token[1] == version}
            good.add((user, version))
        stand = {(known.owner, known.version) for known in await agents.versions_of(agent_id)}
        assert not ended & stand, "a token that was ended is good again"
        assert good <= stand


async def test_versions_are_told_in_pages_of_every_owner_there_was(pool: Pool) -> None:
    agents = Agents(pool)
    for name in ("B", "a", "ä"):
        await agents.mint(name, "ann", ROOT, reset=False)
    await agents.bind("a", "bob", ROOT)
    await agents.bind("never minted", "bob", ROOT)
    found, after = [], None
    while page := await agents.token_versions(after=after, limit=2):
        found += page
        after = page[-1]
    assert [(one.agent_id, one.owner, one.version) for one in found] == [
        ("B", "ann", 1),
        ("a", "ann", 2),
        ("a", "bob", 2),
        ("ä", "ann", 1),
    ]


async def test_entitlements_are_of_those_who_ask_only(pool: Pool) -> None:
    agents, grants = Agents(pool), Grants(pool)
    await agents.bind("a", "ann", ROOT)
    ids: list[UUID] = []
    for subject in ("user:bob", "group:team", "user:eve"):
        made = await grants.add(
            grant_id=uuid7.uuid7(),
            agent_id="a",
            subject=subject,
            permission="use",
            tools=["x"],
            expires_at=None,
            origin=ROOT,
            owned_by="ann",
        )
        ids.append(made.id)
    known = await Entitlements(pool).of(["a", "b"], ["user:bob", "group:team"])
    assert sorted(grant.subject for grant in known["a"].grants) == ["group:team", "user:bob"]
    assert (known["a"].owner, known["b"].owner, known["b"].grants) == ("ann", None, ())
    with pytest.raises(Conflict):
        await grants.revoke("a", ids[0], ROOT, owned_by="bob")
    assert len(await grants.of("a")) == 3


async def test_policies_are_read_as_they_are_said(pool: Pool) -> None:
    said = {"agents": "a*", "tools": "*", "note": None, **dict.fromkeys(SAYS), "risk": "high", "denied": False}
    await Policies(pool).add(uuid7.uuid7(), said, ROOT)
    (policy,) = await Entitlements(pool).policies()
    assert (policy.agents, policy.risk, policy.denied, policy.writes) == ("a*", "high", False, None)
