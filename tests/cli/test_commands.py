"""``config``, ``token``, ``migrate`` and what the command line does with errors, in this process."""

from __future__ import annotations

import json
import subprocess
import sys

import psycopg
import pytest
from click.testing import CliRunner, Result

from daemon.auth.caller import Caller
from daemon.auth.keys import Keyring
from daemon.auth.tokens import Tokens
from daemon.cli import main
from tests.cli.command import ROOT, SECRET

SETTINGS = {
    "postgres_url": "postgresql://user:hush@db.example:5432/runwarden",
    "redis_url": "redis://:hush@redis.example:6379/0",
    "gateway_url": "http://gateway:hush@gateway.example:8090",
    "gateway_token": "hush",
    "jwt_secret": "hush" * 8,
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(f"RUNWARDEN_{name.upper()}", raising=False)


def run(*arguments: str, answer: str | None = None, **settings: str) -> Result:
    environment = {f"RUNWARDEN_{name.upper()}": value for name, value in settings.items()}
    return CliRunner().invoke(main, arguments, input=answer, env=environment)


def bearer(token: str) -> Caller:
    """Whom the token names, by the secret of these tests."""
    return Tokens(Keyring(SECRET)).authenticate(token)


def test_config_shows_the_settings_in_force_and_no_secret() -> None:
    shown = run("config", **SETTINGS, port="9999")
    assert shown.exit_code == 0
    assert "hush" not in shown.output
    lines = dict(line.split("=", 1) for line in shown.output.splitlines())
    assert lines["RUNWARDEN_PORT"] == "9999"
    assert lines["RUNWARDEN_POSTGRES_URL"] == "postgresql://user:****@db.example:5432/runwarden"
    assert lines["RUNWARDEN_GATEWAY_URL"] == "http://gateway:****@gateway.example:8090"
    assert lines["RUNWARDEN_JWT_SECRET"] == lines["RUNWARDEN_GATEWAY_TOKEN"] == "****"


def test_config_as_json_is_one_object() -> None:
    shown = json.loads(run("config", "--json", **SETTINGS).output)
    assert shown["RUNWARDEN_REDIS_URL"] == "redis://:****@redis.example:6379/0"


def test_a_password_in_the_query_of_a_url_is_masked_too() -> None:
    url = "postgresql:///runwarden?host=db.example&password=hush&user=me"
    assert "hush" not in run("config", **SETTINGS | {"postgres_url": url}).output


def test_config_lists_all_problems_at_once() -> None:
    shown = run("config", port="many", log_level="LOUD", postgres_url="mysql://db/x")
    assert shown.exit_code == 1
    assert "Traceback" not in shown.output
    told = shown.stderr.splitlines()
    for name in ("GATEWAY_URL", "JWT_SECRET", "LOG_LEVEL", "PORT", "POSTGRES_URL", "REDIS_URL"):
        assert any(line.strip().startswith(f"RUNWARDEN_{name}: ") for line in told), name
    assert "  RUNWARDEN_POSTGRES_URL: must be postgresql://user:password@host:port/database" in told


def test_token_mints_what_the_api_accepts() -> None:
    made = run("token", "--sub", "ada@example", "--hours", "2", jwt_secret=SECRET)
    assert made.exit_code == 0
    caller = bearer(made.stdout.strip())
    assert caller.user_id == "ada@example"


def test_operators_commands_speak_json(bare_database: str) -> None:
    token = json.loads(run("token", "--sub", "ada", "--json", jwt_secret=SECRET).stdout)
    caller = bearer(token["token"])
    assert (token["sub"], token["expires_at"]) == ("ada", caller.expires_at)
    applied = json.loads(run("migrate", "--json", postgres_url=bare_database).stdout)["applied"]
    assert applied[0] == "0001.workflows"
    assert json.loads(run("migrate", "--json", postgres_url=bare_database).stdout) == {"applied": []}
    census = json.loads(run("quarantine", "--json", postgres_url=bare_database).stdout)
    assert census == {"parked": False, "unfinished": [], "unreadable": 0}


def test_token_without_the_secret_says_what_to_do() -> None:
    refused = run("token")
    assert refused.exit_code == 1
    assert "RUNWARDEN_JWT_SECRET: is required" in refused.stderr
    assert "runwarden dev" in refused.stderr


def test_token_refuses_a_user_that_the_api_would_refuse() -> None:
    refused = run("token", "--sub", "x" * 256, jwt_secret=SECRET)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "1 to 255 characters" in refused.stderr


def test_migrate_goes_up_once_down_only_when_confirmed_and_up_again(bare_database: str) -> None:
    up = run("migrate", postgres_url=bare_database)
    assert up.exit_code == 0
    applied = up.output.splitlines()
    assert applied
    assert all(line.startswith("applied 0") for line in applied)
    assert run("migrate", postgres_url=bare_database).output == "Nothing to do: up to date.\n"

    kept = run("migrate", "--rollback-all", answer="n\n", postgres_url=bare_database)
    assert kept.exit_code == 1
    assert "removes every workflow and every run" in kept.output
    assert "workflow_runs" in tables(bare_database)

    down = run("migrate", "--rollback-all", "--yes", postgres_url=bare_database)
    assert down.exit_code == 0
    assert down.output.splitlines() == [line.replace("applied", "rolled back") for line in reversed(applied)]
    assert not {name for name in tables(bare_database) if "yoyo" not in name}

    assert run("migrate", postgres_url=bare_database).output == up.output


def tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {name for (name,) in rows}


def test_migrate_without_postgres_is_one_clear_line_with_the_password_masked() -> None:
    refused = run("migrate", postgres_url="postgresql://user:hush@127.0.0.1:1/runwarden")
    assert refused.exit_code == 1
    assert refused.stderr.startswith("Error: Postgres at postgresql://user:****@127.0.0.1:1/runwarden does not answer")
    assert "hush" not in refused.output


def test_help_names_every_command() -> None:
    shown = run("--help").output
    assert all(f"\n  {name} " in shown for name in ("config", "demo", "dev", "migrate", "serve", "token"))


def test_version_is_told() -> None:
    assert run("--version").output.startswith("runwarden")


def test_quarantine_of_a_database_that_is_not_migrated_says_what_to_do(bare_database: str) -> None:
    shown = run("quarantine", "--yes", postgres_url=bare_database)
    assert shown.exit_code == 1
    assert "run 'runwarden migrate' first" in shown.stderr
    assert "Traceback" not in shown.output


def test_quarantine_of_nothing_changes_nothing(database: str) -> None:
    for arguments in (("quarantine",), ("quarantine", "--yes")):
        shown = run(*arguments, postgres_url=database)
        assert shown.exit_code == 0
        assert shown.output.startswith("0 unfinished runs")


def test_the_command_line_starts_without_what_only_some_commands_need() -> None:
    heavy = "aiohttp, asyncpg, pydantic, redis, rich, yaml"
    code = f"import sys, daemon.cli; print([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert told.stdout.strip() == "[]"
