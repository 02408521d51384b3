#!/usr/bin/env python
"""How far trained students carry to other data: a linear layer on each one's frozen embedding, as CRD and PCKD do.

python tools/transfer.py runs/kd-seed* runs/pckd-seed* --dataset stl10 --data-root data
"""

import sys

from pckd.commands.transfer import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
