"""Letters set aside: what a run could not take, kept with the reason. Written by ``runtime/host``, read by people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from daemon import telemetry
from daemon.machine.commands import RunId
from daemon.store.pool import Pool, reading

LETTER_BYTES = 65_536
"""Most bytes kept of one letter; its whole length is noted."""
KEPT_PER_RUN = 100
"""Letters kept of one run; further ones are only counted and logged."""

_KEEP = """
INSERT INTO workflow_run_poison (run_id, digest, letter, bytes, reason)
SELECT t.* FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::int[], $5::text[])
    AS t(run_id, digest, letter, bytes, reason)
WHERE (SELECT count(*) FROM workflow_run_poison p WHERE p.run_id = t.run_id) < $6
ON CONFLICT (run_id, digest) DO NOTHING
"""


class Poison:
    """The table ``workflow_run_poison``. A letter that comes again is kept once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def keep(self, letters: Iterable[tuple[RunId, bytes, str]]) -> None:
        """Keep (run, raw letter, why). Raises StoreUnavailable: then they must stay where they are."""
        rows = [
            (run_id, hashlib.sha256(raw).digest(), raw[:LETTER_BYTES], len(raw), _text(why))
            for run_id, raw, why in letters
        ]
        async with reading(self._pool) as connection:
            await connection.execute(_KEEP, *(list(column) for column in zip(*rows, strict=True)), KEPT_PER_RUN)
        telemetry.poison_letters.inc(len(rows))


def _text(why: str) -> str:
    """A reason that Postgres can keep, for it may quote what Postgres could not."""
    return why.replace("\0", "\ufffd").encode(errors="replace").decode()
