#!/usr/bin/env python
"""Methods, or an ablation's variants of one, side by side: pairs of networks, seeds, and tables of them.

python tools/benchmark.py --methods vanilla,kd,pckd --pairs 'resnet20>resnet8,resnet20>vgg8' --output runs/a
python tools/benchmark.py --preset quick --output runs/quick        # less than an hour on two cores
python tools/benchmark.py --preset quick --ablation pckd --output runs/parts
python tools/benchmark.py --matrix                                  # which method works on which pair of families

Interrupted, the same command goes on where it stopped.
"""

import sys

from pckd.commands.benchmark import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
