#!/usr/bin/env python
"""Distill a student: names in, a trained network out.

python tools/train_net.py --student resnet8x4
"""

import sys

from pckd.commands.train_net import LISTS, main, make_parser

__all__ = ["LISTS", "main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
