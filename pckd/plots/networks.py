"""The networks of runs, and the images they were measured on, from what the folders say of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from model_zoo import Preprocessing, load_weights, preprocessing_of
from model_zoo.adapting import adapted_by_itself, classifier_name
from model_zoo.checkpoints import OtherClasses
from pckd.data.load import Data, load_data, read_split
from pckd.device import Device
from pckd.engine.fingerprint import network_fingerprint
from pckd.engine.progress import own_random_state
from pckd.engine.record import FINAL_MODEL
from pckd.plan import load_trained, make_task
from pckd.runs import OF_IMAGES, Group, Run
from pckd.saved import with_head
from pckd.tasks import Task
from pckd.tasks.classification import check_classes
from registry import BACKBONES, UserError, ask, build

CPU = torch.device("cpu")
MOST_STUDENTS = 3
_HEAD = "head."
"""Where a student that answers with the head of a loss keeps it (``pckd.objective.Predictor``)."""


class Shown(NamedTuple):
    """Networks, and what they are shown."""

    task: Task
    split: Any
    networks: list[tuple[str, nn.Module]]
    """Each with its title, where it is shown images: the students, and last their teacher, if it is at hand."""
    device: Device
    notes: list[str]

    def loader(self, part: Any) -> Any:
        """The images of a part of the split as the task measures on them."""
        return self.task.loader(part, 16, train=False, objective=None, device=self.device.target)


class Workshop:
    """Loads what pictures of networks need; a data set once, however many pictures show it.

    Args:
        teacher_weights: the teacher's, instead of the file that the runs name. data_root: where the data set's files
            are now. images: at most so many test images are shown. score: detections below are not drawn. device,
            precision: of the networks that show them.
    """

    def __init__(
        self,
        teacher_weights: str | os.PathLike[str] | None = None,
        data_root: str | os.PathLike[str] | None = None,
        images: int = 1000,
        score: float = 0.5,
        device: str | torch.device | None = None,
        precision: str = "auto",
    ) -> None:
        if not 0 <= score <= 1:
            raise UserError(f"score must be from 0 to 1, not {score:g}")
        self.images, self.score, self.device, self.precision = images, score, device, precision
        self._teacher_weights = None if teacher_weights is None else os.fspath(teacher_weights)
        self._data_root = None if data_root is None else os.fspath(data_root)
        self._splits: dict[str, Any] = {}

    def students(self, groups: Sequence[Group]) -> tuple[list[tuple[str, Run]], list[str]]:
        """A finished run of each group with its label, and a note where a group has more."""
        if len(groups) > MOST_STUDENTS:
            raise UserError(
                f"{len(groups)} students are too many for one picture; give at most {MOST_STUDENTS} folders"
            )
        chosen = [(group.label, group.runs[0]) for group in groups]
        for _, run in chosen:
            if not run.result or not (run.path / FINAL_MODEL).is_file():
                missing = FINAL_MODEL if run.result else "result.json"
                raise UserError(f"{run.path}: has no {missing}: let the run finish (train_net.py --resume)")
        notes = [f"{g.label}: shown is {g.runs[0].path}, of {len(g.runs)} seeds" for g in groups if len(g.runs) > 1]
        return chosen, notes

    @own_random_state(CPU)
    def student(self, run: Run) -> nn.Module:
        """The trained student of a run, in eval mode."""
        path = run.path / FINAL_MODEL
        if run.task not in OF_IMAGES:
            task, data = self.task(run)
            return load_trained(task, str(run.result.get("student")), data, path).eval()
        state = _state(path)
        headed = any(key.startswith(_HEAD) for key in state)
        name = str(run.result.get("student"))
        network = network_for(name, state, path, below="network." if headed else "")
        if headed:
            network = _predictor(run, network)
        load_weights(network, path)
        return network.eval()

    @own_random_state(CPU)
    def teacher(self, runs: Sequence[Run], student: nn.Module) -> tuple[str, nn.Module | None, list[str]]:
        """The runs' common teacher: its name, the network in eval mode, or None and a note that says why."""
        taught = [run for run in runs if run.result.get("teacher")]
        if not taught:
            return "", None, [f"{runs[0].path}: has no teacher, so that the student alone is shown"]
        if any(isinstance(run.result["teacher"], list) for run in taught):
            return "", None, [f"{taught[0].path}: has several teachers, so that the student alone is shown"]
        names = list(dict.fromkeys(str(run.result["teacher"]) for run in taught))
        found = (run.arguments.get("teacher_weights") or run.result.get("teacher_file") for run in taught)
        files = list(dict.fromkeys(found))
        if len(names) > 1 or (len(files) > 1 and self._teacher_weights is None):
            raise UserError(
                f"the runs have several teachers ({', '.join(map(str, names + files))}); show them one by one"
            )
        source = self._teacher_weights or files[0]
        hint = "; the student alone is shown (give --teacher-weights FILE)"
        if source is None:
            return names[0], None, [f"{taught[0].path}: does not say where its teacher's weights are{hint}"]
        there = any(Path(text).expanduser().is_file() for text in (source, source.rpartition("#")[0]))
        if self._teacher_weights is None and "://" not in source and not there:
            return names[0], None, [f"{taught[0].path}: its teacher's weights {source} are not there any more{hint}"]
        if taught[0].task not in OF_IMAGES:
            task, data = self.task(taught[0])
            network = task.make_network(names[0], data)
        else:
            classes, channels = classes_of(student), _channels(student)
            network = ask(f"backbone {names[0]!r}", build, BACKBONES, names[0], classes, in_channels=channels)
            network = adapted_by_itself(network)
        try:
            load_weights(network, source)
        except OtherClasses:
            return names[0], None, [f"{source}: has more classes than the data, or others; the student alone is shown"]
        record = preprocessing_of(student)
        if record is not None and record.classes:
            check_classes(f"teacher {names[0]}", network, record.classes, "the student")
        known = [run.result["fingerprints"].get("teacher") for run in taught if run.result.get("fingerprints")]
        weights = network_fingerprint(network)["weights"]
        other = any(teacher and teacher["weights"] != weights for teacher in known)
        notes = [f"{source}: has other weights than the teacher that the runs learned from"] if other else []
        return names[0], network.eval(), notes

    def shown(self, groups: Sequence[Group]) -> Shown:
        """The students of these groups and their teacher, and what they were measured on.

        Raises:
            UserError: see :meth:`students`, :meth:`student`, :meth:`teacher` and :meth:`split`.
        """
        chosen, notes = self.students(groups)
        runs = [run for _, run in chosen]
        split = self.common_split(runs)
        networks = [(f"{run.result['student']}, {label}", self.student(run)) for label, run in chosen]
        name, teacher, more = self.teacher(runs, networks[0][1])
        if teacher is not None:
            networks.append((f"teacher {name}", teacher))
        device = Device.resolve(self.device, self.precision)
        for _, network in networks:
            device.place(network)
        return Shown(self.task(runs[0])[0], split, networks, device, [*notes, *more])

    def task(self, run: Run) -> tuple[Task, Data]:
        """The run's task, and data of which both splits are what it was measured on.

        Raises:
            UserError: there is no such task; or see :meth:`split`.
        """
        split = self.split(run)
        data = Data(split, split, split.name, task=run.task)
        return make_task(run.task, data), data

    def common_split(self, runs: Sequence[Run]) -> Any:
        """What all of these runs were measured on.

        Raises:
            UserError: it is not the same; or see :meth:`split`.
        """
        split = self.split(runs[0])
        if any(self.split(run) is not split for run in runs[1:]):
            raise UserError("the runs have different data sets; show them one by one")
        return split

    def split(self, run: Run) -> Any:
        """What the run was measured on: the test split, or the images held out of the training set."""
        name, root = run.arguments.get("data"), self._data_root or run.arguments.get("data_root")
        if not isinstance(name, str):
            raise UserError(f"{run.path}: its result does not name the data set; train again by name (--dataset)")
        held_out, bad = run.arguments.get("val_fraction") or 0.0, run.arguments.get("on_bad_image", "stop")
        limit = run.arguments.get("limit_train") if held_out else None
        key = repr((name, root, bad, held_out, limit))
        if key not in self._splits:
            try:
                if held_out:
                    data = load_data(name, root=root, limit_train=limit, val_fraction=held_out, on_bad_image=bad)
                    self._splits[key] = data.test
                else:
                    # The training images are not looked at, and may be many.
                    self._splits[key] = read_split(name, root, False, bad)
            except UserError as error:
                raise UserError(f"{run.path}: its data set is not at hand ({error}); see --data-root") from error
        return self._splits[key]


def network_for(name: str, state: dict[str, Any], path: Path, below: str = "") -> nn.Module:
    """An untrained network of this name, with the classes and channels of weights that are to be loaded into it; its
    keys begin with ``below`` in ``state``."""

    def made(classes: int, channels: int) -> nn.Module:
        network: nn.Module = ask(f"backbone {name!r}", build, BACKBONES, name, classes, in_channels=channels)
        return adapted_by_itself(network)

    sketch = made(2, 3)
    classifier = classifier_name(sketch)
    first = next((key for key, value in sketch.named_parameters() if value.dim() == 4), None)
    rows = state.get(f"{below}{classifier}.weight")
    filters = state.get(f"{below}{first}")
    if rows is None:
        raise UserError(f"{path}: is not of a {name}, which its result.json names; train again")
    return made(rows.shape[0], 3 if filters is None else filters.shape[1])


def classes_of(network: nn.Module) -> int:
    classifier: Any = network.classifier
    return int(classifier.out_features)


def _channels(network: nn.Module) -> int:
    return next((int(value.shape[1]) for value in network.parameters() if value.dim() == 4), 3)


def _state(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = content["model"]
        return {str(key): value for key, value in state.items()}
    # Damaged files fail in many ways, all of which mean the same to the user.
    except Exception as error:
        raise UserError(f"{path}: not the weights of a finished run, or damaged ({type(error).__name__})") from error


def _predictor(run: Run, network: nn.Module) -> nn.Module:
    """The student with the head of the loss that answers for it, untrained."""
    method, student = (str(run.result.get(key)) for key in ("method", "student"))
    centers, teacher = run.arguments.get("centers", "classifier"), run.result.get("teacher")
    classes, channels = tuple(map(str, range(classes_of(network)))), _channels(network)
    # Runs of before did not say what their images were.
    usual = Preprocessing((0.5,) * channels, (0.25,) * channels, (32, 32), classes)
    record = Preprocessing.from_metadata(run.result) or usual
    return with_head(network, student, record, method=method, teacher=teacher, centers=centers)
