"""A small MCP server of our own, for the demo: release notes from a git history, in the open.

Run as ``python -m daemon.dev.workbench --repo REPOSITORY --out DIRECTORY`` by an MCP host; only tests import it.
``release_notes`` reads the history and keeps a draft, ``lint_notes`` finds what a generator cannot know, ``write_file``
puts the notes where people will read them. It never writes outside ``--out``, and never changes the repository.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mcp import MCPDeprecationWarning
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

DRAFT = "release-notes.md"
_FILES_PER_COMMIT = 40  # counted in full; the rest of a huge commit is only summed
_REQUIRED = ("Changes", "Upgrading")  # the second is for a person to write
_LONGEST_SUBJECT = 72


@dataclass(frozen=True, slots=True)
class Change:
    """One commit, read from the repository."""

    sha: str
    subject: str
    added: int
    removed: int
    areas: Counter[str]
    lines_now: int


class Bench:
    """The two directories this server works on; its public methods are the tools."""

    def __init__(self, repo: Path, out: Path) -> None:
        self.repo = repo.resolve()
        self.out = out.resolve()

    async def release_notes(
        self,
        ctx: Context,
        max_count: Annotated[int, Field(ge=1, le=500, description="How many commits, from the newest.")] = 20,
        pace_ms: Annotated[int, Field(ge=0, le=5000, description="Pause after each commit, for a human reader.")] = 0,
    ) -> str:
        """Reads the newest commits one by one, tells what each changed, and keeps the notes as a draft."""
        log = await self._git("log", f"--max-count={max_count}", "--format=%h%x09%s")
        commits = [line.split("\t", 1) for line in log.split("\n") if line]
        changes: list[Change] = []
        for number, (sha, subject) in enumerate(commits, 1):
            change = await self._read(sha, subject)
            changes.append(change)
            facts = {"commit": sha, "subject": subject, "added": change.added, "removed": change.removed}
            await ctx.log("info", facts, logger_name="release_notes")
            await ctx.report_progress(number, len(commits), f"read {sha} ({number} of {len(commits)})")
            await asyncio.sleep(pace_ms / 1000)
        notes = compose(changes)
        draft = self._draft(DRAFT)
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(notes, encoding="utf-8")
        return notes

    def lint_notes(self, draft: Annotated[str, Field(description="The name of a draft.")] = DRAFT) -> str:
        """Checks a draft against the house rules; fails with the list of what breaks them."""
        found = lint(_text_of(self._draft(draft)))
        if found:
            raise ToolError("the notes break the house rules:\n" + "\n".join(f"- {fault}" for fault in found))
        return "the notes follow the house rules"

    def write_file(
        self,
        path: Annotated[str, Field(description="Where to write, below the output directory.")],
        content: Annotated[str | None, Field(description="What to write.")] = None,
        draft: Annotated[str | None, Field(description="Or the name of the draft to write.")] = None,
    ) -> str:
        """Writes a text or a draft to a file, replacing what was there."""
        if (content is None) == (draft is None):
            raise ToolError("give either 'content' or 'draft'")
        target = self._inside(path)
        text = content if content is not None else _text_of(self._draft(str(draft)))
        replaced = target.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return f"{'replaced' if replaced else 'wrote'} {target} ({len(text.encode())} bytes)"

    def _inside(self, path: str) -> Path:
        """A path below ``out``; whatever leads elsewhere (``..``, absolute, a symlink) is refused."""
        target = (self.out / path).resolve()
        if target == self.out or not target.is_relative_to(self.out):
            raise ToolError(f"{path!r} is not a file below the output directory")
        return target

    def _draft(self, name: str) -> Path:
        """Where a draft is kept."""
        return self._inside(f"drafts/{name}")

    async def _git(self, *arguments: str) -> str:
        """Runs git in the repository; its complaint is the tool's."""
        process = await asyncio.create_subprocess_exec(
            "git",
            "-C",
            str(self.repo),
            "-c",
            "core.quotePath=false",
            *arguments,
            stdin=subprocess.DEVNULL,  # ours is the host's end of the protocol
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            output, complaint = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode != 0:
            raise ToolError(f"git {arguments[0]}: {complaint.decode(errors='replace').strip()}")
        return output.decode(errors="replace")

    async def _read(self, sha: str, subject: str) -> Change:
        """What one commit changed, and how many lines the files it touched have after it."""
        added = removed = lines_now = 0
        areas: Counter[str] = Counter()
        rows = (await self._git("show", "--numstat", "--no-renames", "--format=", sha)).splitlines()
        for number, row in enumerate(rows):
            plus, minus, path = row.split("\t", 2)
            if plus == "-":  # a binary file
                continue
            added, removed = added + int(plus), removed + int(minus)
            areas[path.split("/", 1)[0] if "/" in path else "."] += int(plus) + int(minus)
            if number < _FILES_PER_COMMIT:
                lines_now += await self._lines(sha, path)
        return Change(sha, subject, added, removed, areas, lines_now)

    async def _lines(self, sha: str, path: str) -> int:
        try:
            return (await self._git("show", f"{sha}:{path}")).count("\n")
        except ToolError:
            return 0  # the commit removed it


def build(bench: Bench) -> MCPServer:
    """The server over one bench: its three tools, and what each says about itself."""
    server = MCPServer("runwarden-workbench")
    for tool, title, readonly, destructive, idempotent in (
        (bench.release_notes, "Draft release notes", False, False, True),
        (bench.lint_notes, "Check a draft", True, False, True),
        (bench.write_file, "Write a file", False, True, False),
    ):
        hints = ToolAnnotations(
            title=title,
            read_only_hint=readonly,
            destructive_hint=destructive,
            idempotent_hint=idempotent,
            open_world_hint=False,
        )
        server.tool(annotations=hints, structured_output=False)(tool)
    return server


def compose(changes: Sequence[Change]) -> str:
    """The notes, in Markdown. What to do when upgrading is not in a git history, so there is no such section."""
    areas: Counter[str] = Counter()
    for change in changes:
        areas += change.areas
    lines = ["# Release notes", "", f"{len(changes)} commits, newest first.", "", "## Changes", ""]
    for change in changes:
        facts = f"+{change.added} −{change.removed}, {change.lines_now} lines in the files it touched"
        lines.append(f"- `{change.sha}` {change.subject} ({facts})")
    lines += ["", "## Where the work went", ""]
    lines += [f"- `{area}`: {count} lines" for area, count in areas.most_common(8)]
    return "\n".join(lines) + "\n"


def lint(notes: str) -> list[str]:
    """What in the notes breaks the house rules."""
    headings = {line.removeprefix("## ").strip() for line in notes.splitlines() if line.startswith("## ")}
    faults = [f"no section '## {name}'" for name in _REQUIRED if name not in headings]
    for line in notes.splitlines():
        if line.startswith("- `") and " (+" in line:
            subject = line.split("` ", 1)[-1].rsplit(" (+", 1)[0]
            if len(subject) > _LONGEST_SUBJECT:
                faults.append(f"a subject of {len(subject)} characters (at most {_LONGEST_SUBJECT}): {subject}")
    return faults


def _text_of(draft: Path) -> str:
    try:
        return draft.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ToolError(f"there is no draft called {draft.name}: run release_notes first") from None


def main() -> None:
    """Serves over stdio until stdin closes."""
    parser = argparse.ArgumentParser(prog="workbench", description="Release notes from a git history, over MCP.")
    parser.add_argument("--repo", type=Path, required=True, help="the git repository to read")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write below")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore", MCPDeprecationWarning)  # MCP log messages: on their way out, still what hosts show
    build(Bench(given.repo, given.out)).run("stdio")


if __name__ == "__main__":
    main()
