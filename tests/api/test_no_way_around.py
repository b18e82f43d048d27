"""No route invokes a tool: only the runner's dispatch, which asks about the intent, ever refers to that."""

from __future__ import annotations

import ast
from pathlib import Path

from daemon.api.reach import Reach
from gateway_client import Gateways

ROOT = Path(__file__).parents[2]
CALLS = {"invoke", "invoke_at_once"}
MAY = {
    Path("daemon/runtime/dispatch.py"),
    Path("daemon/runtime/actor.py"),  # tells the dispatch
    Path("daemon/cli/exits.py"),  # click's own word: a group invokes its commands
}
PRETEND = {"dev", "machine"}
"""The pretended Gateway's own end of it, and effects by name."""


def _names(path: Path) -> set[str]:
    """Every attribute, name and text of a module: getattr("invoke") is found as well."""
    tree = ast.parse(path.read_text())
    found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_only_dispatch_refers_to_invoking() -> None:
    every = (path.relative_to(ROOT) for path in (ROOT / "daemon").rglob("*.py"))
    used = {path for path in every if path.parts[1] not in PRETEND and _names(ROOT / path) & CALLS}
    assert used == MAY
    assert vars(Gateways).keys() >= CALLS


def test_what_the_front_has_of_the_gateways_can_call_nothing() -> None:
    api = [path for path in (ROOT / "daemon" / "api").glob("*.py") if "Gateways" in _names(path)]
    assert {path.name for path in api} == {"front.py", "reach.py"}
    assert not any(isinstance(value, Gateways) for value in vars(Reach(Gateways({}), mirrors=False)).values())
    bound_to = {name for name, value in vars(Reach(Gateways({}), mirrors=False)).items() if callable(value)}
    assert bound_to == {"_ask_roster", "_ask_tools"}
