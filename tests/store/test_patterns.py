"""Postgres and the machine agree on which tools a grant's pattern means, or a person decides on what is not theirs.

``tool_fits`` (schema/0019) says who sees a run that asks them and has it in the inbox; ``matches`` says who decides.
"""

from __future__ import annotations

from itertools import product
from random import Random

from daemon.auth.access import matches
from daemon.store.pool import Pool

LETTERS = ["a", "b", "A", "_", "%", "\\", "*", "\n", "é", "."]
PAIRS = 20_000


def drawn(chance: Random, letters: list[str], most: int) -> str:
    return "".join(chance.choices(letters, k=chance.randint(0, most)))


async def test_a_pattern_means_the_same_tools_to_both(pool: Pool) -> None:
    chance = Random(7)
    pairs = [(drawn(chance, LETTERS, 6), drawn(chance, LETTERS, 6)) for _ in range(PAIRS)]
    pairs += [("".join(one), "".join(other)) for one in product("a*_", repeat=3) for other in product("ab_", repeat=3)]
    for pattern, _ in pairs[:2_000]:  # with texts that fit, of which chance alone draws few
        pairs.append((pattern, "".join(drawn(chance, LETTERS, 2) if one == "*" else one for one in pattern)))
    columns = ([pattern for pattern, _ in pairs], [tool for _, tool in pairs])
    rows = await pool.fetch("SELECT tool_fits(p, t) AS fits FROM unnest($1::text[], $2::text[]) AS x (p, t)", *columns)
    fits = [row["fits"] for row in rows]
    assert sum(fits) > 2_000
    wrong = [pair for pair, said in zip(pairs, fits, strict=True) if said != matches(*pair)]
    assert wrong == []
