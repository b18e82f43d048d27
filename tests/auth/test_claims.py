"""What claims say: roles and groups in all the shapes that identity providers give them, bounded, to the safe side."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.auth.caller import PLAIN
from daemon.auth.claims import MAX_GROUP, MAX_GROUPS, Rules, groups_of, roles_of
from daemon.errors import Unauthenticated

KEYCLOAK = {"realm_access": {"roles": ["approver", "offline_access", "uma_authorization"]}}
PATH = "realm_access.roles"

ROLES: dict[str, tuple[Any, str, set[str]]] = {
    "no claim is a plain user": ({}, "roles", set(PLAIN)),
    "a list": ({"roles": ["operator"]}, "roles", {"viewer", "operator"}),
    "a text with blanks": ({"roles": "operator  approver other"}, "roles", {"viewer", "operator", "approver"}),
    "an admin": ({"roles": ["admin"]}, "roles", {"viewer", "admin"}),
    "an empty list": ({"roles": []}, "roles", {"viewer"}),
    "an empty text": ({"roles": ""}, "roles", {"viewer"}),
    "null": ({"roles": None}, "roles", {"viewer"}),
    "names of nobody": ({"roles": ["superuser", "Admin", "admin "]}, "roles", {"viewer"}),
    "a text of commas": ({"roles": "admin,operator"}, "roles", {"viewer"}),
    "an object": ({"roles": {"admin": True}}, "roles", {"viewer"}),
    "true": ({"roles": True}, "roles", {"viewer"}),
    "a number": ({"roles": 7}, "roles", {"viewer"}),
    "lists in lists": ({"roles": [["admin"], {"admin": 1}, 7, None]}, "roles", {"viewer"}),
    "a path": (KEYCLOAK, PATH, {"viewer", "approver"}),
    "a path without its end": ({"realm_access": {}}, PATH, set(PLAIN)),
    "a path through a list": ({"realm_access": ["admin"]}, PATH, set(PLAIN)),
    "a path through a text": ({"realm_access": "roles"}, PATH, set(PLAIN)),
    "a name with dots in it": (
        {"https://us.example/roles": ["admin"]},
        "https://us.example/roles",
        {"viewer", "admin"},
    ),
    "a name before a path": ({PATH: ["operator"], **KEYCLOAK}, PATH, {"viewer", "operator"}),
    "another claim": ({"roles": ["admin"]}, PATH, set(PLAIN)),
}


@pytest.mark.parametrize("name", ROLES)
def test_roles(name: str) -> None:
    claims, path, roles = ROLES[name]
    assert roles_of(claims, Rules(roles_claim=path)) == roles


GROUPS: dict[str, tuple[Any, set[str]]] = {
    "none": ({}, set()),
    "a list": ({"groups": ["ops", "dev", "ops"]}, {"ops", "dev"}),
    "a text is one": ({"groups": "night shift"}, {"night shift"}),
    "what is no text": ({"groups": ["ops", 7, None, ["dev"], {}, ""]}, {"ops"}),
    "an object": ({"groups": {"ops": 1}}, set()),
    "a name too long": ({"groups": ["x" * MAX_GROUP, "y" * (MAX_GROUP + 1)]}, {"x" * MAX_GROUP}),
    "a name that cannot be stored": ({"groups": ["ops", "o\x00ps", "o\ud800ps"]}, {"ops"}),
    "as many as there may be": ({"groups": [str(n) for n in range(MAX_GROUPS)]}, {str(n) for n in range(MAX_GROUPS)}),
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups(name: str) -> None:
    claims, groups = GROUPS[name]
    assert groups_of(claims, Rules()) == groups


def test_more_groups_than_there_may_be_are_refused_by_name_of_the_claim() -> None:
    with pytest.raises(Unauthenticated, match=r"201 groups.*'memberOf'"):
        groups_of({"memberOf": [str(n) for n in range(MAX_GROUPS + 1)]}, Rules(groups_claim="memberOf"))
