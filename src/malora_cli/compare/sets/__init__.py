"""Sets of contenders that a paper's table is made of, one file each: what it calls them, and how each is made.

Each file has ``contenders(recipe)``: overrides of every contender by its name, in the order of the table, and
``BASELINE``, the name of the one that the others are compared with.
"""

from __future__ import annotations

from malora_cli.compare.sets import ablations, ranks, remedies

SETS = {"ablations": ablations, "ranks": ranks, "remedies": remedies}
