"""Words and settings that cannot be meant: told with exit code 2, never as a traceback, and to programs as JSON."""

from __future__ import annotations

import json
from pathlib import Path

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


WRONG_URLS = {
    "ftp://x": "begins with http:// or https://",
    "http://": "names no host",
    "http://ann:hunter2@host": "by the token alone",
    "http://example..com": "no name of a host",
    "http://h:99999": "its port",
    "http://h:x": "its port",
    "http://[::1": "in brackets",
    "http://a b": "a space",
    "http://h/?a=b": "no ?",
}


@pytest.mark.parametrize(("url", "why"), WRONG_URLS.items())
def test_a_url_that_is_none_is_told_with_where_it_stands(url: str, why: str, tmp_path: Path) -> None:
    directory = {"XDG_CONFIG_HOME": str(tmp_path)}
    file = tmp_path / "runwarden" / "config.toml"
    file.parent.mkdir()
    file.write_text(f'[profiles.work]\nurl = "{url}"\ntoken = "t"\n')
    for place, told in {
        "--url": says("run", "list", "--url", url, "--token", "t", **directory),
        "RUNWARDEN_URL": says("run", "list", "--token", "t", RUNWARDEN_URL=url, **directory),
        "profile work": says("run", "list", "--profile", "work", RUNWARDEN_URL="http://h", **directory),
        "'--url'": says("profile", "set", "home", "--url", url, "--token", "t", **directory),
    }.items():
        assert (told.exit_code, told.stdout) == (2, ""), told.output
        assert place.strip("'") in told.stderr
        assert why in told.stderr
        assert "hunter2" not in told.stderr


@pytest.mark.parametrize("url", ["http://[::1]:1", "http://127.0.0.1:1/behind/a/proxy/", "https://bücher.invalid"])
def test_a_url_that_may_be_one_is_tried(url: str) -> None:
    assert says("service-token", "create", "ci", "--scope", "viewer", "--url", url, "--token", "t").exit_code == 3


def test_a_token_that_can_be_none_is_told_with_where_it_stands() -> None:
    for place, told in {
        "--token": says("run", "list", "--url", "http://127.0.0.1:1", "--token", "tök", "--json"),
        "RUNWARDEN_TOKEN": says("run", "list", "--url", "http://127.0.0.1:1", "--json", RUNWARDEN_TOKEN="a\nb"),
    }.items():
        error = json.loads(told.stderr)["error"]
        assert (told.exit_code, error["code"]) == (4, "bad_token")
        assert error["detail"].startswith(f"{place} has a character that no token has")


DEEP = "[" * 100_000
READERS = {
    "a workflow": ("workflow", "apply", "-"),
    "arguments": ("run", "edit", "R", "--step", "s", "--arguments", "-"),
    "decisions": ("approvals", "decide", "--file", "-"),
    "agents": ("agent", "bind", "--file", "-"),
}


@pytest.mark.parametrize("text", [DEEP, '{"a":' + DEEP, "\ud800", "[1]", '"' + "x" * 200_000, "a,b\x00,c", "a,b,c"])
@pytest.mark.parametrize("reader", READERS)
def test_what_cannot_be_read_from_standard_input_is_told_so(reader: str, text: str) -> None:
    given = text.encode(errors="surrogatepass")
    told = CliRunner().invoke(main, [*READERS[reader], *NOWHERE], input=given)
    assert (told.exit_code, told.stderr.startswith("Error: standard input")) == (7, True), told.stderr[:500]


ODD = b"caf\xe9".decode(errors="surrogateescape")
"""As Python hands over a word whose bytes are no UTF-8."""


@pytest.mark.parametrize(
    "words",
    [
        *(("run", verb, ODD) for verb in ("show", "watch", "start", "cancel")),
        ("run", "cancel", "R", "--reason", ODD),
        ("run", "cancel", "R", f"--reason={ODD}"),
        ("audit", "--action", ODD),
        ("agent", "bind", ODD, "--owner", "ann"),
        ("policy", "set", ODD, "--denied"),
        ("workflow", "apply", ODD),
        (ODD,),
        ("run", f"--{ODD}"),
    ],
)
def test_a_word_that_is_no_utf_8_is_told_before_anything_is_sent(words: tuple[str, ...]) -> None:
    told = says(*words, RUNWARDEN_URL="http://127.0.0.1:1", RUNWARDEN_TOKEN="t")
    assert (told.exit_code, told.stdout) == (2, "")
    assert "caf\\xe9 has bytes that are no UTF-8: write it in UTF-8." in told.stderr
    error = json.loads(says(*words, "--json").stderr)["error"]
    assert (error["code"], "caf\\xe9" in error["detail"]) == ("usage", True)


def test_a_file_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(ODD).write_text("- no workflow\n")
    told = says("workflow", "apply", ODD, *NOWHERE)
    assert (told.exit_code, "it holds no object" in told.stderr) == (7, True)
    named_like_it = says("run", "show", ODD, *NOWHERE)
    assert (named_like_it.exit_code, "Traceback" in named_like_it.output) == (2, False)
    assert "that cannot be sent" in named_like_it.stderr
