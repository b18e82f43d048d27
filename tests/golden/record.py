"""Records the full transcripts again: ``python -m tests.golden.record`` from the root of the repository.

Do so only after a change of events that is meant, and read the difference in git line by line: what is recorded here
has been promised to every log already written. The lists in ``v0/`` are never recorded; they are written by hand.
"""

from __future__ import annotations

import json

from tests.golden.replay import HERE, STORIES, play, transcript


def main() -> None:
    """Write ``full/<story>.json`` for each story of ``v0/``, and remove those whose story is gone."""
    folder = HERE / "full"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.json"):
        if path.stem not in STORIES:
            path.unlink()
    for name in STORIES:
        text = json.dumps(transcript(play(name)), indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
