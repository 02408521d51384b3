"""Sets of arguments of ``tools/benchmark.py``, by name; what the command line gives wins."""

from __future__ import annotations

from typing import Any

from pckd.comparison.paper import paper_methods, paper_pairs

PRESETS = ("paper-cifar100", "quick")


def preset(name: str) -> dict[str, Any]:
    """Option to default. ``quick`` is the same benchmark as the paper's in sizes for two CPU cores and an hour."""
    if name == "paper-cifar100":
        return {
            "dataset": "cifar100",
            "pairs": ",".join(paper_pairs()),
            "methods": ",".join(paper_methods()),
            "epochs": 240,
            "batch_size": 64,
        }
    return {
        "dataset": "shapes(num_classes=20, image_size=16, train_size=4000, test_size=2000)",
        "pairs": "resnet20>resnet8",
        "methods": "vanilla,kd,pckd,pckd_without_kd,dkd,dist,crd,srrl,reviewkd",
        "epochs": 30,
        "batch_size": 64,
        "seeds": "0,1,2",
    }
