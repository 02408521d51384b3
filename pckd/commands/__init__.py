"""Command lines: what ``tools/`` and the console scripts run; a file each."""
