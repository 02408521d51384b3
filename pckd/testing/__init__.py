"""Checks that a plug-in keeps the contract of its kind, for the tests of its author.

    from pckd.testing import check_loss

    def test_mine():
        check_loss("mine")

Each takes a registered name, with options or without (``"preview(growth=1.01)"``), or the function or class itself, and
raises :class:`ContractError` in one line: whose contract, which clause, what was seen, and what is expected. An unknown
name is a :class:`registry.UserError`. They need neither pytest nor files, take a second or less, and leave the random
numbers of the caller as they were.
"""

from pckd.testing.augmentations import check_augmentation
from pckd.testing.backbones import check_backbone
from pckd.testing.centers import check_center_rule
from pckd.testing.contract import ContractError
from pckd.testing.datasets import check_dataset
from pckd.testing.dense import check_dense
from pckd.testing.difficulty import check_difficulty
from pckd.testing.losses import check_loss
from pckd.testing.lr_schedules import check_lr_schedule
from pckd.testing.methods import check_method
from pckd.testing.optimizers import check_optimizer
from pckd.testing.schedulers import check_scheduler

__all__ = [
    "ContractError",
    "check_augmentation",
    "check_backbone",
    "check_center_rule",
    "check_dataset",
    "check_dense",
    "check_difficulty",
    "check_loss",
    "check_lr_schedule",
    "check_method",
    "check_optimizer",
    "check_scheduler",
]
