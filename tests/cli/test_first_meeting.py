"""What a person does wrongly or in a narrow terminal: it is told, and nothing is decided unseen."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from daemon.cli.connection import Connection, talking
from daemon.cli.root import main
from daemon.cli.watch import _View
from daemon.dev.story import Pause


@pytest.mark.parametrize("said", ["123", "[a]", '""'])
def test_a_workflow_id_that_is_none_is_told_and_creates_nothing(tmp_path: Path, said: str) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(f"workflow_id: {said}\ntitle: A\n")
    told = CliRunner().invoke(main, ["workflow", "apply", str(file), "--url", "http://127.0.0.1:1", "--token", "t"])
    assert told.exit_code == 7
    assert "workflow_id" in told.output


def test_the_question_shows_a_long_message_whole_at_a_narrow_terminal() -> None:
    view = _View({"workflow_snapshot": {"title": "A", "steps": []}, "run_id": "r"}, as_json=True)
    pause = Pause.__new__(Pause)
    for name, value in {"reason": "held", "step": None, "card": None, "message": "x" * 90 + "THE END"}.items():
        object.__setattr__(pause, name, value)
    out = StringIO()
    Console(file=out, width=30).print(view.question(pause))
    assert out.getvalue().count("x") == 90


def test_ctrl_c_at_a_question_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_text: str) -> str:
        raise KeyboardInterrupt

    @click.command()
    @talking
    def asks(to: Connection) -> None:
        monkeypatch.setattr(click.termui, "visible_prompt_func", interrupted)
        click.confirm("Approve it?", abort=True)

    assert CliRunner().invoke(asks, ["--url", "http://127.0.0.1:1", "--token", "t"]).exit_code == 130


def test_a_file_nested_too_deeply_is_told(tmp_path: Path) -> None:
    file = tmp_path / "deep.json"
    file.write_text("[" * 3000 + "]" * 3000)
    told = CliRunner().invoke(main, ["workflow", "apply", str(file), "--url", "http://127.0.0.1:1", "--token", "t"])
    assert told.exit_code == 7


@pytest.mark.parametrize("typed", ["", ".", ".."])
def test_an_id_that_would_name_another_path_is_told(typed: str) -> None:
    told = CliRunner().invoke(main, ["run", "show", typed, "--url", "http://127.0.0.1:1", "--token", "t"])
    assert told.exit_code == 2
    assert "is no id" in told.output
