"""A workflow in a file of YAML or JSON: read strictly, and what the API finds wrong with it told by the file's lines.

Used by ``workflow apply``. Neither knows what a workflow may say; the API does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.cli import typed
from daemon.cli.exits import Exit, Told


@dataclass(frozen=True, slots=True)
class Document:
    """What a file holds, and its text."""

    file: Path
    text: str
    value: dict[str, Any]

    @property
    def flat(self) -> bool:
        """Whether it is the spec itself, and not a body with a spec in it."""
        return not isinstance(self.value.get("spec"), dict)

    def told(self, fault: Told) -> Told:
        """The API's refusal of what was in it, by its own places: a line and a pointer each."""
        if not fault.faults:
            return fault
        places = [path.removeprefix("/spec") if self.flat else path for path, _ in fault.faults]
        lines = _lines(self.text, places)
        said = [
            f"{', '.join(filter(None, (line, place)))}: {message}"
            for line, place, (_, message) in zip(lines, places, fault.faults, strict=True)
        ]
        message = "\n  ".join((f"{typed.named(self.file)} is no valid workflow:", *said))
        return Told(message, exit_code=Exit(fault.exit_code), code=fault.code, hint=fault.hint, faults=fault.faults)


def read(file: Path) -> Document:
    """The object in a file. YAML contains JSON; JSON is read as JSON, which is stricter and faster. Raises Told."""
    text = typed.text_of(file)
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = _yaml(file, text)
    if not isinstance(given, dict):
        raise bad(file, "it holds no object with title and steps")
    return Document(file, text, given)


def bad(file: Path, why: str) -> Told:
    """What is told of a file that holds no workflow at all."""
    hint = "A workflow is YAML or JSON with a title and steps; docs/cli.md has one to begin with."
    return Told(
        f"{typed.named(file)} cannot be read as a workflow: {why}", exit_code=Exit.INVALID, code="bad_file", hint=hint
    )


def _yaml(file: Path, text: str) -> Any:
    import yaml

    class Strict(yaml.SafeLoader):
        """YAML as far as JSON goes: a date stays text, and a key that comes twice is a slip."""

        yaml_implicit_resolvers = {  # noqa: RUF012 - the shape that PyYAML prescribes
            first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            doubled = {str(key) for key in keys if keys.count(key) > 1 and key != "<<"}
            if doubled:
                raise yaml.constructor.ConstructorError(None, None, f"twice: {', '.join(doubled)}", node.start_mark)
            return super().construct_mapping(node, deep)

    try:
        return json.loads(json.dumps(yaml.load(text, Strict), allow_nan=False))  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as fault:
        raise bad(file, str(fault)) from None


def _lines(text: str, places: Sequence[str]) -> list[str]:
    """The line of what stands at each place, or, where nothing does, of what it would stand in. JSON is YAML too.

    Empty where YAML cannot read it: JSON may have tabs.
    """
    import yaml

    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return [""] * len(places)
    return [f"line {_line(node, place)}" for place in places]


def _line(node: Any, place: str) -> int:
    import yaml

    line: int = node.start_mark.line
    for part in place.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == name), None)
        elif isinstance(node, yaml.SequenceNode) and name.isdecimal() and int(name) < len(node.value):
            found = (node.value[int(name)],) * 2
        if found is None:
            break
        line, node = found[0].start_mark.line, found[1]
    return line + 1
