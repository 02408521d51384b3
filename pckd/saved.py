"""A saved student as a whole: the network, its classes and its preprocessing, from what its file says of it."""

from __future__ import annotations

import json
import logging
import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from model_zoo import Preprocessing, load_weights, read_metadata
from pckd.engine.progress import own_random_state
from pckd.plan import make_task, plan
from pckd.tasks.classification import Classification
from pckd.terms import Teachers
from registry import BACKBONES, UnknownName, UserError, parse

__all__ = ["load", "load_with_task", "with_head"]

log = logging.getLogger("pckd")


def load(source: str | os.PathLike[str]) -> nn.Module:
    """The network of a file that this library has written (``model_final.pth``, a trained teacher's), in eval mode.

    Its classes and how its images are prepared are in ``model_zoo.preprocessing_of(network)``.

    Args:
        source: path or address, as of :func:`model_zoo.load_weights`.

    Raises:
        UserError: no such file, one that does not say what its network is, or a network that is not known here.
    """
    return load_with_task(source)[0]


@own_random_state(torch.device("cpu"))
def load_with_task(source: str | os.PathLike[str]) -> tuple[nn.Module, str]:
    """What :func:`load` returns, and the name of the task that the network has learned."""
    file = os.fspath(source)
    if not os.path.exists(file) and file.partition("(")[0] in BACKBONES.names():
        raise UserError(f"a trained network is needed, or its file, and not a name ({file!r})")
    meta = read_metadata(source)
    name, record = meta.get("student") or meta.get("teacher"), Preprocessing.from_metadata(meta)
    # A network whose classifier was never trained has columns, and no classes.
    columns = 0 if record is None else len(record.classes) or int(meta.get("num_classes") or 0)
    known = record is not None and record.mean and all(record.image_size) and columns
    unsaid = ["its network"] * (not isinstance(name, str)) + ["its classes and preprocessing"] * (not known)
    if unsaid or record is None:
        raise UserError(
            f"{file}: has no record of {' and '.join(unsaid)}: build the network and use model_zoo.load_weights"
        )
    name = str(name)
    # All that a network is built from is in the record; there is no data.
    split = SimpleNamespace(num_classes=columns, classes=record.classes, image_size=record.image_size)
    data: Any = SimpleNamespace(train=split, test=split, name=file, image_shape=(len(record.mean), *record.image_size))
    plain = parse(name)[0]
    if plain not in BACKBONES and plain.partition(":")[0] not in BACKBONES:
        raise UserError(
            f"{file}: its network {name!r} is not known here: load its plug-in first, or build it and use "
            "model_zoo.load_weights"
        )
    # Files of before do not say their task, but networks do.
    task = make_task(str(meta.get("task") or BACKBONES.facts(parse(name)[0]).get("task") or "classification"), None)
    network = task.make_network(name, data)
    head = meta.get("head")
    head = json.loads(head) if isinstance(head, str) else head  # the metadata of .safetensors are strings
    if isinstance(head, dict):
        try:
            network = with_head(network, name, record, **head)
        except UnknownName as error:
            raise UserError(
                f"{file}: the student answers with a loss's head, built by the names of its training ({error}); load "
                "their plug-in first, or build it and use model_zoo.load_weights"
            ) from None
    load_weights(network, source)
    if not record.classes:
        log.warning("%s: its classifier was never trained; its embedding was (pckd.transfer)", file)
    return network.eval(), task.name


def with_head(
    network: nn.Module, student: str, record: Preprocessing, *, method: str, teacher: Teachers, centers: str
) -> nn.Module:
    """A student with the head of the loss that answers for it, untrained.

    Args:
        network: the student. student: its name. record: of its images, whose size the head may depend on.
        method, teacher, centers: of its training.
    """
    task = Classification()
    data = task.random_data(2, len(record.classes), (len(record.mean), *record.image_size))
    made = plan(task=task, data=data, student=student, teacher=teacher, method=method, centers=centers)
    return made.objective(made.untrained_teacher()).predictor(network)
