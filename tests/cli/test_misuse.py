"""Words and settings that cannot be meant: told with exit code 2, never as a traceback, and to programs as JSON."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from daemon.cli.root import main

NOWHERE = ("--url", "http://127.0.0.1:1", "--token", "t")


def says(*words: str, **environment: str) -> Result:
    return CliRunner().invoke(main, words, env=environment)


@pytest.mark.parametrize(
    "words",
    [
        "run list --status bad --json",
        "run watch R --bogus --json",
        "run --json",
        "runn list --json",
        "--bogus --json",
        "profile use no/name --json",
        "run show . --json --url http://127.0.0.1:1 --token t",
    ],
)
def test_programs_are_told_of_a_wrong_word_in_json(words: str) -> None:
    told = says(*words.split())
    assert (told.exit_code, told.stdout) == (2, "")
    error = json.loads(told.stderr)["error"]
    assert (error["code"], error["exit_code"]) == ("usage", 2)
    assert error["detail"]
    assert "--help" in error["hint"]


def test_people_are_told_of_a_wrong_word_with_the_usage() -> None:
    for words in (["run", "list", "--status", "bad"], ["run", "show", "--bogus", "--", "--json"]):
        told = says(*words)
        assert told.exit_code == 2
        assert told.stderr.startswith("Usage: ")


def test_a_missing_profile_is_told_to_programs_in_json() -> None:
    told = says("profile", "use", "nobody", "--json", XDG_CONFIG_HOME="/nonexistent")
    assert told.exit_code == 2
    assert json.loads(told.stderr)["error"]["code"] == "no_such_profile"


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(
    "words",
    [
        ("run", "start", "W", *NOWHERE, "--timeout"),
        ("service-token", "create", "ci", "--scope", "viewer", *NOWHERE, "--days"),
        ("token", "--hours"),
        ("demo", "--seconds"),
    ],
)
def test_what_is_no_number_is_told(words: tuple[str, ...], number: str) -> None:
    told = says(*words, number, RUNWARDEN_JWT_SECRET="a secret of at least thirty-two characters")
    assert (told.exit_code, told.stdout) == (2, "")
    assert f"Invalid value for '{words[-1]}'" in told.stderr


@pytest.mark.parametrize("key", ["a\nb", "a b", "clé", "", "k" * 256])
@pytest.mark.parametrize("words", [("run", "start", "W"), ("workflow", "apply", "-")])
def test_a_key_that_the_api_would_not_take_is_told_before_anything_is_sent(words: tuple[str, ...], key: str) -> None:
    told = says(*words, *NOWHERE, "--key", key)
    assert (told.exit_code, told.stdout) == (2, "")
    assert "Invalid value for '--key': 1 to 255 letters" in told.stderr
