#!/usr/bin/env python
"""What training costs: FLOPs, memory and time of two networks, of each loss term, and of a step. Needs no data.

python tools/profile_net.py --student resnet8x4
python tools/profile_net.py --student resnet8x4 --compare kd,pckd,pckd@1
python tools/profile_net.py --pairs paper --markdown costs.md
"""

import sys

from pckd.commands.profile_net import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
