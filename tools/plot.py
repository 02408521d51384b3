#!/usr/bin/env python
"""Pictures of what runs and benchmarks have written.

python tools/plot.py curves runs/kd-* runs/pckd-* --output curves.png
python tools/plot.py all runs/kd-0 runs/pckd-0 runs/compare --output pictures
"""

import sys

from pckd.commands.plot import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
