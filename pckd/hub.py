"""A trained network as a folder in the layout of model hubs: weights, config.json, model card. Nothing is sent."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from model_zoo import Preprocessing, save_weights
from model_zoo.external import TimmBackbone
from pckd.api import distill
from pckd.arguments import ARGUMENTS
from pckd.engine.record import FINAL_MODEL
from pckd.runs import RESULT, Run, read_finished, title_of
from pckd.tables import fixed, markdown_rows
from registry import (
    BACKBONES,
    CENTER_RULES,
    DATASETS,
    DIFFICULTY_METRICS,
    DIFFICULTY_SCHEDULERS,
    LR_SCHEDULES,
    TASKS,
    UserError,
    options_of,
    parse,
)
from registry.files import write_atomically

__all__ = ["command_line", "write_folder"]

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}
METRICS = {"top1": "accuracy", "map": "mean_average_precision", "miou": "mean_iou"}
"""What hubs call the metrics."""
NAMED = {
    "student": BACKBONES,
    "teacher": BACKBONES,
    "data": DATASETS,
    "task": TASKS,
    "schedule": LR_SCHEDULES,
    "difficulty": DIFFICULTY_METRICS,
    "scheduler": DIFFICULTY_SCHEDULERS,
    "centers": CENTER_RULES,
}
"""Arguments of a run that a command line gives by a name of a registry."""


def write_folder(
    network: nn.Module,
    record: Preprocessing,
    known: Mapping[str, Any],
    path: Path,
    *,
    source: Path | None,
    license: str,
) -> Path:
    """Write the three files.

    Args:
        known: what the network's file says of it. source: that file; a run's result beside it is in the card.

    Raises:
        UserError: one of the files is there already, or the license is no line of text.
    """
    if not license.strip() or len(license.splitlines()) > 1:
        raise UserError(f"the license must be a line, such as apache-2.0, mit or unknown, not {license!r}")
    there = [name for name in (WEIGHTS, CONFIG, CARD) if (path / name).exists()]
    if there:
        raise UserError(f"{path}: already holds {', '.join(there)}; give another folder")
    run = None
    if source is not None and source.name == FINAL_MODEL and (source.parent / RESULT).is_file():
        run = read_finished(source.parent)
    about = {"task": "classification", **known}
    # timm looks for its own names.
    inside = network.network if isinstance(network, TimmBackbone) else network
    save_weights(inside, path / WEIGHTS, preprocessing=record.as_metadata(), **known)
    config = json.dumps(_config(network, record, about), indent=2, ensure_ascii=False) + "\n"
    write_atomically(path / CONFIG, config.encode())
    write_atomically(path / CARD, _card(network, record, about, run, license.strip()).encode())
    return path


def _config(network: nn.Module, record: Preprocessing, about: Mapping[str, Any]) -> dict[str, Any]:
    """In the fields of timm, which builds its own networks from it; the classes also in those of transformers."""
    name = about.get("student") or about.get("teacher") or type(network).__name__
    plain, options = parse(name)
    classifier = getattr(network, "classifier", None)
    size = [len(record.mean), *record.image_size]
    shown = {"input_size": size, "mean": record.mean, "std": record.std, "interpolation": "bilinear", "crop_pct": 1.0}
    numbered = {str(number): label for number, label in enumerate(record.classes)}
    return {
        "architecture": plain.removeprefix("timm:"),
        **({"model_args": options} if options else {}),
        "num_classes": len(record.classes),
        **({"num_features": classifier.in_features} if isinstance(classifier, nn.Linear) else {}),
        "label_names": record.classes,
        "pretrained_cfg": {**shown, "num_classes": len(record.classes)},
        "id2label": numbered,
        "label2id": {label: int(number) for number, label in numbered.items()},
        "pckd": {key: value for key, value in about.items() if isinstance(value, (str, int, float, dict))},
    }


def _card(network: nn.Module, record: Preprocessing, about: Mapping[str, Any], run: Run | None, license: str) -> str:
    name = str(about.get("student") or about.get("teacher") or type(network).__name__)
    result = {} if run is None else run.result
    taught = result.get("teacher")
    pipeline = PIPELINES.get(str(about["task"]))
    head: dict[str, Any] = {
        "license": license,
        "library_name": "timm" if isinstance(network, TimmBackbone) else "pckd",
        "tags": [*([pipeline] if pipeline else []), *(["knowledge-distillation"] if taught else []), "pytorch", "pckd"],
        **({"pipeline_tag": pipeline} if pipeline else {}),
    }
    parameters = sum(parameter.numel() for parameter in network.parameters())
    lines = [f"# {name}", "", f"{name}, {parameters:,} parameters, {len(record.classes)} classes."]
    if run is not None:
        metric = run.metric
        figure = {"type": METRICS.get(metric, metric), "value": run.last, "name": f"{title_of(metric)} (%)"}
        dataset = {"name": result["dataset"], "type": _plain(result["dataset"]) or "custom"}
        results = [{"task": {"type": pipeline or about["task"]}, "dataset": dataset, "metrics": [figure]}]
        head["model-index"] = [{"name": name, "results": results}]
        teachers = " and ".join(map(str, listed(taught)))
        method = f"distilled from {teachers} with the method `{run.method}`" if taught else f"trained by `{run.method}`"
        lines[-1] += f" It was {method} on `{result['dataset']}`."
        lines += ["", "## Figures", "", *_figures(run), "", "## Training", "", *_training(run)]
    else:
        lines += ["", "Figures: none are known."]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "import pckd",
        "",
        'network = pckd.load("FOLDER")  # this folder',
        "```",
        "",
    ]
    height, width = record.image_size
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (record.mean, record.std))
    lines += [f"Images: {height}x{width} pixels, scaled to 0 to 1, less the mean ({mean}), over the deviation ({std})."]
    lines += [f"`pckd-predict FOLDER IMAGE` prepares them so. License: {license}."]
    # JSON is YAML, too.
    yaml = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "\n".join(["---", *yaml, "---", "", *lines]) + "\n"


def _figures(run: Run) -> list[str]:
    metric, result = run.metric, run.result
    title = title_of(metric)
    rows = [[f"{title} after the last epoch", f"{fixed(run.last)} %"], [f"best {title}", f"{fixed(run.best)} %"]]
    others = [name for name in result.get("columns", ()) if result.get(f"last_{name}") is not None]
    rows += [[f"{title_of(name)} after the last epoch", f"{fixed(result[f'last_{name}'])} %"] for name in others]
    if result.get(f"teacher_{metric}") is not None:
        rows.append([f"{title} of the teacher", f"{fixed(result[f'teacher_{metric}'])} %"])
    rows.append(["measured on", str(result.get("measured_on", "test"))])
    return markdown_rows(["", "one run"], rows, numbers=True)


def _training(run: Run) -> list[str]:
    result = run.result
    rows = [[key.replace("_", " "), str(result[key])] for key in ("epochs", "lr", "seed", "train_images", "precision")]
    rows += [["versions", ", ".join(f"{name} {number}" for name, number in result.get("versions", {}).items())]]
    line = command_line(run)
    by = ["It was started from Python, with objects that have no name."] if not line else ["```bash", line, "```"]
    return [*markdown_rows(["", "value"], rows), "", *by]


def command_line(run: Run) -> str:
    """The command of a run; "" where an argument cannot be given on a command line. Files are named without folders."""
    given, defaults = run.arguments, options_of(distill)
    named = [(one, kind) for name, kind in NAMED.items() for one in listed(given.get(name)) if one is not None]
    if any(_plain(one) not in kind.names() for one, kind in named):
        return ""
    words = ["pckd-train"]
    # Where data is drawn, the command line has other defaults.
    spelled = {**given, "lr": run.result.get("lr", given.get("lr"))}
    if run.result.get("teacher") and not all(listed(given.get("teacher_weights"))):
        spelled["teacher_epochs"] = given.get("teacher_epochs") or given["epochs"]
    for name, value in spelled.items():
        default = defaults.get(name)
        default = list(default) if isinstance(default, tuple) else default
        always = name in ("student", "data", "epochs", "batch_size", "lr", "teacher_epochs")
        argument = ARGUMENTS[name]
        if value is None or (value == default and not always) or (argument.may_change and name != "epochs"):
            continue
        if name in ("milestones", "lr_decay") or (isinstance(value, list) and not argument.several):
            return ""
        flag = "--dataset" if name == "data" else f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            for one in listed(value):
                file = argument.path or name == "teacher_classes"
                text = "-" if one is None else Path(one).name if file else str(one)
                words += [flag, shlex.quote(text)]
    return " ".join(words)


def listed(value: Any) -> list[Any]:
    """The values of an argument that may be given several times."""
    return value if isinstance(value, list) else [value]


def _plain(text: Any) -> str:
    """A name, or a family's, without options; "" where it is none."""
    try:
        return parse(text)[0].partition(":")[0]
    except UserError:
        return ""
