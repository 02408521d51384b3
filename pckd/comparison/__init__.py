"""Methods, pairs of networks, seeds and ablations side by side: what ``tools/benchmark.py`` runs and writes.

``variants``: what is compared. ``jobs``: its runs, and what is refused before the first. ``runner``: running them, here
or several at once. ``results`` and ``summary``: what came out, as files. ``statistics``: paired differences.
"""
