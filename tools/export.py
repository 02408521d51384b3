#!/usr/bin/env python
"""A trained network alone, as ONNX, for torch.export, or as safetensors.

python tools/export.py runs/pckd/model_final.pth --output student.onnx --normalize
"""

import sys

from pckd.commands.export import main, make_parser

__all__ = ["main", "make_parser"]

if __name__ == "__main__":
    sys.exit(main())
