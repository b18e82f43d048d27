"""The room that drives: owns runs, folds what happened to them, commits it, and speaks to Gateways.

``actor`` is one run as a value and its turn; ``residents`` the table of those in memory; ``host`` the one turn loop and
the lanes behind it; ``ownership`` takes runs and lets them go; ``dispatch`` calls Gateways; ``ingest`` hears them
(``memory`` is its standby's); ``sweep`` repairs what signals missed. ``ports`` is all that actor and host know of the
world.
"""
