#!/usr/bin/env python
"""What a trained network says of images: names of files in, a table out.

python tools/predict.py runs/pckd/model_final.pth photo.jpg folder
"""

import sys

from pckd.commands.predict import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
