"""Methods, pairs of networks, seeds and ablations side by side: what ``tools/benchmark.py`` runs and writes.

``cases``: what is compared. ``plan``: its runs, and what is refused before the first. ``runs``: running them, here or
several at once. ``ledger`` and ``sheets``: what came out, as files. ``statistics``: means, and paired differences.
"""
