"""Every command in these pages is typed as a reader would type it, and what it answers is what the page shows.

Each page has a stack of its own, started by the command that the page names, and one bash. ``make demo`` and ``make
dev`` are typed elsewhere: the first by ``tests/cli/test_demo.py``, the second is ``runwarden dev`` in ``.venv``.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.command import ROOT, clean_environment, running
from tests.docs.page import Block, differences, read

PAGES = ("README.md", "docs/quick-start.md", "docs/api-by-example.md", "docs/your-mcp-servers.md")
READY = "Ctrl-C ends everything"
LOCAL = "http://127.0.0.1:8080"
PATIENCE_S = 150.0

READER = """
set -o pipefail
trap 'echo $? > "$typed/code"' EXIT
for typed in typed/*; do
  source "$typed/commands" > "$typed/out" 2> "$typed/err"
  echo $? > "$typed/code"
done
"""
"""One bash for the whole page: what a block sets or starts is there for the next. It ends at the first failure."""


@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_the_page_does_what_the_page_says(
    name: str, servers_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    page, home = read(ROOT / name), servers_dir / f"reader-of-{Path(name).stem}"
    home.mkdir()
    for file, text in page.files.items():
        (home / file).write_text(text)
    words = shlex.split("runwarden dev" if page.server == "make dev" else page.server)
    with running(*words[1:], home=home, port="0") as dev:
        panel = dev.until(READY)
        url, token = (re.search(line, panel, re.MULTILINE) for line in (r"^API +(\S+)", r"^export TOKEN=(\S+)$"))
        assert url, panel
        assert token, panel
        assert "offers no tools" not in panel
        type_all(page.blocks, home, url=url[1], token=token[1])
        assert dev.signalled(signal.SIGINT) == 0
    for number, block in enumerate(page.blocks):
        assert_as_shown(f"{name}:{block.line}", block, home / "typed" / f"{number:03}")


def type_all(blocks: list[Block], home: Path, *, url: str, token: str) -> None:
    """Types them with what the panel told, at the port that is this test's; ends what was left in the background."""
    for number, block in enumerate(blocks):
        typed = home / "typed" / f"{number:03}"
        typed.mkdir(parents=True)
        on_failure = "set +e" if block.exits else "set -e"
        (typed / "commands").write_text(f"{on_failure}\n{block.commands.replace(LOCAL, url)}")
    environment = clean_environment() | {"HOME": str(home), "TOKEN": token}
    bash = subprocess.Popen(
        ["bash", "-c", READER], cwd=home, env=environment, stdin=subprocess.DEVNULL, process_group=0
    )
    try:
        with suppress(subprocess.TimeoutExpired):  # the block without an exit code is then the one that hangs
            bash.wait(PATIENCE_S)
    finally:
        _end(bash)


def _end(bash: subprocess.Popen[bytes]) -> None:
    """Ends it and whatever it left running: all are in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(bash.pid, signal.SIGKILL)
    bash.wait()


def assert_as_shown(where: str, block: Block, typed: Path) -> None:
    """The block ended as the page says and wrote what the page shows."""
    out, err = ((typed / name).read_text() if (typed / name).exists() else "" for name in ("out", "err"))
    story = f"{where}\n{block.commands}\nwrote\n{out}\n{err}"
    assert (typed / "code").exists(), f"was not reached, or did not end: {story}"
    code = int((typed / "code").read_text())
    assert code == block.exits, f"ended with {code}: {story}"
    for kind, shown in block.shown:
        faults = differences(kind, shown, out)
        assert not faults, "\n".join([*faults, story])
