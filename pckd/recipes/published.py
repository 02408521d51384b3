"""Recipes of the literature. What is set here holds where a run does not say otherwise."""

from __future__ import annotations

from typing import Any

from registry import RECIPES

STRONG = "crop+flip+rand_augment(n=2, m=9)"


@RECIPES.register("crd240", source="CRD's code for CIFAR-100, arXiv 1910.10699")
def crd240() -> dict[str, Any]:
    """That of CIFAR's distillation tables: 240 epochs of SGD, the rate divided by 10 at 150, 180 and 210.

    The rate at the start is the network's own: 0.01 for MobileNetV2 and the ShuffleNets, else 0.05.
    """
    return {
        "epochs": 240,
        "batch_size": 64,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "milestones": (150 / 240, 180 / 240, 210 / 240),
        "lr_decay": 0.1,
        "augment": "crop+flip",
    }


@RECIPES.register("imagenet100", source="torchvision's reference training; ImageNet's rows in CRD, DKD and DIST")
def imagenet100() -> dict[str, Any]:
    """That of ImageNet's distillation tables: 100 epochs of SGD, the rate divided by 10 at 30, 60 and 90.

    The data set ``imagenet`` takes random crops while it reads.
    """
    return {
        "epochs": 100,
        "batch_size": 256,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "milestones": (0.3, 0.6, 0.9),
        "lr_decay": 0.1,
    }


@RECIPES.register("dist-strong", source="DIST's strategy B2 for ImageNet, arXiv 2205.10536")
def dist_strong() -> dict[str, Any]:
    """450 epochs of RMSprop under strong augmentation, with averaged weights.

    The rate falls by 3 % every 2.4 epochs. The dropout of 0.2 is an option of the network.
    """
    return {
        "method": "dist",
        "epochs": 450,
        "batch_size": 768,
        "lr": 0.048,
        "optimizer": "rmsprop(weight_decay=1e-5)",
        "schedule": "step(every=2.4, decay=0.97, warmup=3)",
        "ema": 0.9999,
        "augment": f"{STRONG}+random_erasing(p=0.2)",
    }


@RECIPES.register("deit", source="DeiT for ImageNet, arXiv 2012.12877, table 9")
def deit() -> dict[str, Any]:
    """That of vision transformers: 300 epochs of AdamW with mixup and CutMix.

    The stochastic depth of 0.1 is an option of the network (``drop_path_rate=0.1`` in timm).
    """
    return {
        "epochs": 300,
        "batch_size": 1024,
        "lr": 1e-3,
        "optimizer": "adamw(weight_decay=0.05, decay_norms=False)",
        "schedule": "cosine(warmup=5, least=0.01)",
        "label_smoothing": 0.1,
        "augment": f"{STRONG}+random_erasing(p=0.25)+mixup(alpha=0.8)+cutmix(alpha=1.0)",
    }


@RECIPES.register("patient", source="big_vision's ImageNet configuration of arXiv 2106.05237")
def patient() -> dict[str, Any]:
    """A good teacher is patient and consistent: 1,200 epochs of the teacher's answers alone, on mixed images.

    No label is looked at. The warm-up is of 5,000 steps on ImageNet.
    """
    return {
        "method": "kd(ce=0, temperature=1)",
        "epochs": 1200,
        "batch_size": 4096,
        "lr": 0.03,
        "optimizer": "adamw(weight_decay=0.01)",
        "schedule": "cosine(warmup=16)",
        "clip_grad": 1.0,
        "augment": "random_resized_crop(least=0.05)+flip+mixup(alpha=1)",
    }
