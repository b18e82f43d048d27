"""Letters that nobody has come for. Used by the looks at passive runs: such a run needs a holder."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.fabric.client import Client, speaking
from daemon.fabric.keys import Keys
from daemon.machine.commands import RunId


async def waiting(client: Client, keys: Keys, run_ids: Sequence[RunId]) -> set[RunId]:
    """Those of the passive runs that have letters: their offer was lost. Raises FabricUnavailable.

    An inbox is deleted when its run is let go, so one EXISTS of all of them mostly says that there are none.
    """
    inboxes = {run_id: keys.inbox(run_id) for run_id in run_ids}
    with speaking():
        if not inboxes or not await client.redis.exists(*inboxes.values()):
            return set()
        async with client.redis.pipeline(transaction=False) as pipe:
            for inbox in inboxes.values():
                pipe.exists(inbox)
            answers = await pipe.execute()
    return {run_id for run_id, there in zip(inboxes, answers, strict=True) if there}
