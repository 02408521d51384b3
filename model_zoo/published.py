"""Published CIFAR-100 teachers: where they are and how accurate they are said to be.

Addresses and accuracies are those of the CRD benchmark (Tian et al., ICLR 2020, github.com/HobbitLong/RepDistiller).
The same files are in ``cifar_teachers.tar`` of the release "checkpoints" of github.com/megvii-research/mdistiller, for
the days when that server does not answer: unpack it and give the file's path to ``load_weights``.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from torch import nn

from model_zoo.checkpoints import load_weights
from registry import BACKBONES, UserError, build

__all__ = ["PUBLISHED", "Published", "load_published"]

_SERVER = "http://shape2prog.csail.mit.edu/repo"


@dataclass(frozen=True)
class Published:
    """One published checkpoint.

    Args:
        address: where the file is.
        accuracy: reported top-1 on CIFAR-100's test images, percent.
        num_classes: of its classifier.
        sha256: of the file; None where nobody published it, so that the download cannot be verified.
    """

    address: str
    accuracy: float
    num_classes: int = 100
    sha256: str | None = None


PUBLISHED: dict[str, Published] = {
    name: Published(f"{_SERVER}/{name}_vanilla/ckpt_epoch_240.pth", accuracy)
    for name, accuracy in {
        "ResNet50": 79.34,
        "resnet32x4": 79.42,
        "resnet56": 72.34,
        "resnet110": 74.31,
        "vgg13": 74.64,
        "wrn_40_2": 75.61,
    }.items()
}


def load_published(
    network_name: str, *, sha256: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> nn.Module:
    """Build a network and fill it with its published CIFAR-100 weights, downloaded at the first call.

    Args:
        network_name: one of ``PUBLISHED``.
        sha256: the hash that the file must have, if you know it; the authors published none.
        cache_dir: where downloads are kept.

    Raises:
        UserError: nothing is published for this network, or the download failed or does not fit.
    """
    if network_name not in PUBLISHED:
        raise UserError(
            f"no published checkpoint of {network_name!r}: there are {', '.join(PUBLISHED)}; "
            "train it, or give the path of a checkpoint"
        )
    entry = PUBLISHED[network_name]
    expected = sha256 or entry.sha256
    if expected is None:
        logging.getLogger(__name__).warning(
            "%s: no hash of this file was published, so the download is not verified; pass sha256= to pin it",
            entry.address,
        )
    network: nn.Module = build(BACKBONES, network_name, entry.num_classes)
    load_weights(network, entry.address, sha256=expected, cache_dir=cache_dir)
    return network
