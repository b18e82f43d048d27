"""Taste as failing tests: one test per rule, each naming every offender with its place.

Reads the tree of files, imports nothing of the daemon but its settings catalogue, starts no server. There is no list of
exempted files: where a rule and the code disagree, one of them is wrong. ``test_a_rule_bites`` feeds each rule of
syntax what it forbids, so that none can go blind unnoticed.
"""

from __future__ import annotations

import ast
import functools
import importlib
import io
import itertools
import os
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

ROOMS = {"daemon", "docs", "gateway_client", "ops", "schema", "tests"}
TOP_LEVEL = ROOMS | {"CHANGELOG.md", "Dockerfile", "Makefile", "README.md", "pyproject.toml"}
TOP_LEVEL |= {".ci", ".dockerignore", ".gitignore"}
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
SOURCE_SUFFIXES = {".css", ".html", ".js", ".lua", ".py", ".sh", ".sql"}
NAMELESS = {"common", "helper", "helpers", "misc", "util", "utils"}

CLOCKS_AND_CHANCE = re.compile(
    r"(time|random|secrets)(\..*)?|datetime\.(datetime|date)\.(now|utcnow|today)|(uuid|uuid_utils)\.(getnode|uuid\d)"
    r"|os\.(environb?|getenvb?|putenv|unsetenv|urandom|getrandom)"
)
ENVIRONMENT = re.compile(r"os\.(environb?|getenvb?|putenv|unsetenv)")
ESCAPES = re.compile(r"pytest\.(mark\.)?(skip|skipif|xfail)|pytest\.importorskip|unittest\.(skip\w*|expectedFailure)")
DIRECTIVE = re.compile(
    r"#\s*(?:(?:ruff:\s*|flake8:\s*)?noqa\b(?P<rules>:\s*[A-Z]+\d+(?:[,\s]+[A-Z]+\d+)*)?"
    r"|type:\s*ignore\b(?P<errors>\[[\w\-, ]+\])?|mypy:\s*(?:ignore-errors|disable-error-code)\b)"
)
METRIC = re.compile(r"\brunwarden_[a-z0-9_]+")
METRIC_SUFFIX = re.compile(r"_(bucket|count|created|sum|total)$")
SETTING = re.compile(r"\bRUNWARDEN_[A-Z0-9_]+")
MIGRATION = re.compile(r"(?P<number>\d{4})\.[a-z0-9][a-z0-9_-]*(?P<rollback>\.rollback)?\.sql")
LOCK_LINE = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[\w.+!-]+)( ; [\w .'<>=!()]+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?"
    r"|    #( via)?( +-c (ops/locks/dev\.txt|\(workspace\)))?( +[\w.-]+( \(pyproject\.toml\))?)?"
)


class Module(NamedTuple):
    """One Python file: its path from the root, its text, and its syntax tree."""

    path: str
    text: str
    tree: ast.Module


def _git_files(*options: str) -> list[Path]:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", *options]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()]


@functools.cache
def files() -> list[Path]:
    """Every file of the project, tracked or about to be, relative to the root."""
    return sorted(set(_git_files("--cached", "--others", "--exclude-standard")))


@functools.cache
def modules() -> list[Module]:
    """Every Python file of the project, parsed."""
    texts = {path: (ROOT / path).read_text() for path in files() if path.suffix == ".py"}
    return [Module(str(path), text, ast.parse(text, str(path))) for path, text in texts.items()]


def under(*folders: str) -> list[Module]:
    """The modules within these folders."""
    return [module for module in modules() if module.path.startswith(tuple(f"{folder}/" for folder in folders))]


def assert_clean(offenders: Iterator[str] | list[str]) -> None:
    """Fail with one offender a line."""
    listed = list(offenders)
    if listed:
        pytest.fail("\n".join(listed), pytrace=False)


def dotted_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every imported or used name with its line, spelled from the module it comes from whatever alias it goes by."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
                known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := _dotted(node, known)):
            yield node.lineno, name


def _dotted(node: ast.expr, known: dict[str, str]) -> str | None:
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (left := _dotted(node.value, known)):
        return f"{left}.{node.attr}"
    return None


def uses(module: Module, banned: re.Pattern[str]) -> Iterator[str]:
    """Where a module imports or uses a banned name."""
    found = {(line, name) for line, name in dotted_names(module.tree) if banned.fullmatch(name)}
    for line, name in sorted(found):
        yield f"{module.path}:{line} {name}"


def long_functions(module: Module) -> Iterator[str]:
    """Functions and methods over the limit; the lines of a nested function count for its parent too."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                yield f"{module.path}:{node.lineno} {node.name} has {length} lines"


def undocumented(module: Module) -> Iterator[str]:
    """Modules without a docstring."""
    if not ast.get_docstring(module.tree):
        yield f"{module.path}:1 has no docstring"


def unexplained_exceptions(module: Module) -> Iterator[str]:
    """Suppressions of a linter or of mypy that name no code, or give no reason in words."""
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type != tokenize.COMMENT:
            continue
        directives = list(DIRECTIVE.finditer(token.string))
        reason = re.sub(r"[\W_]+", " ", DIRECTIVE.sub("", token.string)).strip()
        if any(found.lastgroup is None for found in directives):
            yield f"{module.path}:{token.start[0]} names no code: {token.string}"
        elif directives and len(reason) < 8:
            yield f"{module.path}:{token.start[0]} gives no reason: {token.string}"


def sleeps(module: Module) -> Iterator[str]:
    """Sleeps of a fixed length; ``asyncio.sleep(0)`` only yields and may stay."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called, seconds = ast.unparse(node.func), node.args[0].value
            if called.split(".")[-1] == "sleep" and isinstance(seconds, int | float) and seconds > 0:
                yield f"{module.path}:{node.lineno} {called}({seconds})"


def test_files_are_short() -> None:
    """No source file has more lines than a person reads in one sitting."""
    lengths = {path: (ROOT / path).read_text().count("\n") for path in files() if path.suffix in SOURCE_SUFFIXES}
    assert_clean(f"{path} has {lines} lines" for path, lines in lengths.items() if lines > LONGEST_FILE)


def test_functions_are_short() -> None:
    """Every function fits on a screen."""
    assert_clean(fault for module in modules() for fault in long_functions(module))


def test_every_module_has_a_docstring() -> None:
    """A module says its job, who may call it and what it never does."""
    assert_clean(fault for module in modules() for fault in undocumented(module))


def test_no_module_is_nameless() -> None:
    """A module called utils has no job, so it takes every job."""
    parts = ((path, {path.stem, *path.parent.parts}) for path in files() if path.suffix in SOURCE_SUFFIXES)
    assert_clean(f"{path} is named after nothing" for path, names in parts if names & NAMELESS)


def test_the_machine_has_no_clock_and_no_chance() -> None:
    """Time and identifiers are arguments of the machine, so a golden history replays for ever."""
    assert_clean(fault for module in under("daemon/machine") for fault in uses(module, CLOCKS_AND_CHANCE))


def test_only_config_reads_the_environment() -> None:
    """Configuration enters through one door, where it is checked and documented."""
    rooms = (module for module in under("daemon", "gateway_client", "schema") if module.path != "daemon/config.py")
    assert_clean(fault for module in rooms for fault in uses(module, ENVIRONMENT))


def test_every_suppression_names_its_code_and_reason() -> None:
    """``# type: ignore[code]`` and ``# noqa: CODE`` are followed by the reason in words."""
    assert_clean(fault for module in modules() for fault in unexplained_exceptions(module))


def test_no_test_sleeps() -> None:
    """Tests wait for a signal, a polled assertion or virtual time; a fixed sleep is slow or flaky, mostly both."""
    assert_clean(fault for module in under("tests") for fault in sleeps(module))


def test_no_test_is_skipped() -> None:
    """A test that does not run proves nothing and looks as if it did."""
    assert_clean(fault for module in under("tests") for fault in uses(module, ESCAPES))


def test_every_migration_has_a_rollback() -> None:
    """``NNNN.name.sql`` comes with ``NNNN.name.rollback.sql``, and a number is used once."""
    scripts = [path.name for path in files() if path.parts[0] == "schema" and path.suffix == ".sql"]
    assert_clean(f"schema/{name} is not called NNNN.name.sql" for name in scripts if not MIGRATION.fullmatch(name))
    steps = {name for name in scripts if not name.endswith(".rollback.sql")}
    backs = {name.replace(".rollback.sql", ".sql") for name in scripts if name.endswith(".rollback.sql")}
    numbers = sorted(name[:4] for name in steps)
    assert_clean(
        [f"schema/{name} has no rollback" for name in sorted(steps - backs)]
        + [f"schema/{name} has only a rollback" for name in sorted(backs - steps)]
        + [f"schema/{one}.… exists twice" for one, other in itertools.pairwise(numbers) if one == other]
    )


def mentions(pattern: re.Pattern[str], *places: str) -> Iterator[tuple[Path, str]]:
    """Every (file, match) of a pattern in the files at or below these places, the locks excepted."""
    for path in files():
        if path.parts[0] in places and path.parts[:2] != ("ops", "locks"):
            for found in sorted(set(pattern.findall((ROOT / path).read_text(errors="replace")))):
                yield path, found


def test_every_metric_named_in_ops_exists() -> None:
    """A dashboard or an alert over a metric that nobody writes stays silent for ever."""
    source = ast.parse((ROOT / "daemon" / "telemetry.py").read_text())
    texts = (node.value for node in ast.walk(source) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    known = {METRIC_SUFFIX.sub("", text) for text in texts if METRIC.fullmatch(text)}
    assert_clean(
        f"{path} names {name}, which daemon/telemetry.py does not have"
        for path, name in mentions(METRIC, "ops")
        if METRIC_SUFFIX.sub("", name) not in known
    )


def test_the_settings_reference_is_what_the_code_says() -> None:
    """docs/settings.md lists every setting with its reason, and is the text that ``make docs`` writes."""
    config = importlib.import_module("daemon.config")
    settings = config.catalogue()
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = dict(re.findall(r"^\| `(RUNWARDEN_\w+)` \| `(.*?)` \|", page, re.MULTILINE))
    assert_clean(f"{setting.env} has no description" for setting in settings if not setting.doc.strip())
    assert rows == {setting.env: setting.default for setting in settings}, "run `make docs`"
    assert page == config.reference_markdown(), "run `make docs`"


def test_every_setting_named_anywhere_exists() -> None:
    """A misspelt setting in a manifest or in the docs is ignored in silence by the daemon; here it is not."""
    known = {setting.env for setting in importlib.import_module("daemon.config").catalogue()}
    assert_clean(
        f"{path} names {name}, which is no setting"
        for path, name in mentions(SETTING, "Dockerfile", "README.md", "docs", "ops")
        if name not in known and not name.endswith("_")
    )


def test_the_root_holds_what_it_should() -> None:
    """A person who opens the repository sees the rooms and nothing else."""
    tracked = {path.parts[0] for path in _git_files("--cached")}
    assert_clean(
        [f"{name} does not belong in the root" for name in sorted(tracked - TOP_LEVEL)]
        + [f"{name} is missing" for name in sorted(TOP_LEVEL) if not (ROOT / name).exists()]
    )


def test_the_locks_agree_and_name_no_address() -> None:
    """Only exact versions with hashes; what runs is what was tested; no registry, path or machine is named."""
    pinned: dict[str, set[str]] = {}
    for path in sorted((ROOT / "ops" / "locks").glob("*.txt")):
        lines = path.read_text().splitlines()
        assert_clean(f"{path.name}:{n} {line}" for n, line in enumerate(lines, 1) if not LOCK_LINE.fullmatch(line))
        pinned[path.stem] = {line.split(" \\")[0].split(" ;")[0] for line in lines if "==" in line.split(" ;")[0]}
    assert pinned.keys() == {"build", "dev", "runtime"}
    assert_clean(f"{name} is not in dev.txt" for name in sorted((pinned["runtime"] | pinned["build"]) - pinned["dev"]))


def test_make_help_lists_every_command() -> None:
    """What is not listed is not found."""
    makefile = (ROOT / "Makefile").read_text()
    commands = {name for line in re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE) for name in line.split()}
    bare = {"PATH": os.environ["PATH"]}  # not the flags and jobs of the `make` that may be running this test
    shown = subprocess.run(["make", "help"], cwd=ROOT, env=bare, check=True, capture_output=True, text=True).stdout
    listed = set(re.findall(r"^  make ([a-z-]+) +\S", shown, re.MULTILINE))
    assert listed == commands


SINS: dict[str, tuple[Callable[[Module], Iterator[str]], str]] = {
    "a long function": (long_functions, "async def f():\n" + "    1\n" * 60),
    "no docstring": (undocumented, "import os"),
    "type: ignore without a code": (unexplained_exceptions, "x = 1  # type: ignore # a reason in words"),
    "type: ignore without a reason": (unexplained_exceptions, "x = 1  # type: ignore[misc]"),
    "noqa without a code": (unexplained_exceptions, "x = 1  # noqa - a reason in words"),
    "noqa without a reason": (unexplained_exceptions, "x = 1  # type: ignore[misc]  # noqa: S101"),
    "noqa for a file": (unexplained_exceptions, "# ruff: noqa"),
    "a fixed sleep": (sleeps, "await_(asyncio.sleep(0.01))"),
    "a blocking sleep": (sleeps, "from time import sleep\nsleep(1)"),
    "a clock": (lambda module: uses(module, CLOCKS_AND_CHANCE), "from datetime import datetime as d\nd.now()"),
    "a clock by its module": (lambda module: uses(module, CLOCKS_AND_CHANCE), "import datetime\ndatetime.date.today()"),
    "an import of time": (lambda module: uses(module, CLOCKS_AND_CHANCE), "import time as t"),
    "chance": (lambda module: uses(module, CLOCKS_AND_CHANCE), "from uuid import uuid4"),
    "the environment": (lambda module: uses(module, ENVIRONMENT), "import os as o\no.environ.get('A')"),
    "the environment by name": (lambda module: uses(module, ENVIRONMENT), "from os import getenv"),
    "a skipped test": (lambda module: uses(module, ESCAPES), "import pytest\n@pytest.mark.skip\ndef test(): ..."),
    "an expected failure": (lambda module: uses(module, ESCAPES), "from pytest import mark\nmark.xfail(reason='')"),
}


@pytest.mark.parametrize("sin", SINS)
def test_a_rule_bites(sin: str) -> None:
    """Each rule of syntax finds what it forbids, once."""
    rule, text = SINS[sin]
    assert len(list(rule(Module("sin.py", text, ast.parse(text))))) == 1


def test_the_rules_let_good_code_pass() -> None:
    """What the rules ask for is accepted by them."""
    text = (
        '"""A job."""\nfrom datetime import datetime, time\nfrom uuid import UUID\n'
        "def f(now: datetime, at: time, run: UUID):\n"
        "    g(now)  # type: ignore[no-untyped-call]  # noqa: F821 - g comes from a plugin\n"
        "    asyncio.sleep(0)\n"
    )
    module = Module("virtue.py", text, ast.parse(text))
    rules = (long_functions, undocumented, unexplained_exceptions, sleeps)
    assert_clean(fault for rule in rules for fault in rule(module))
    assert_clean(uses(module, CLOCKS_AND_CHANCE))
