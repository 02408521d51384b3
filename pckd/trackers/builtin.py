"""The trackers that are built in."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import time
import uuid
from typing import Any, Literal

from pckd.display import Display
from pckd.tables import csv_text
from pckd.trackers.tracker import Tracker, installed, safe_name
from registry import TRACKERS, UserError
from registry.files import append_whole, write_atomically

__all__ = ["CSV", "MLflow", "TensorBoard", "WandB"]

Folder = str | os.PathLike[str]
Told = Display | Literal["auto"] | None


@TRACKERS.register("tensorboard")
class TensorBoard(Tracker):
    """Events that ``tensorboard --logdir FOLDER`` shows.

    Each training has a folder of its own below, named by its title: a teacher that is trained first does not mix with
    its student. After each epoch the events are handed to the system, so that a killed process loses none of them.
    What a resumed run does again hides what was written of it before.
    """

    def __init__(self, folder: Folder, display: Told = "auto") -> None:
        super().__init__(folder, display)
        self._library = installed("torch.utils.tensorboard", "tensorboard")
        self._writer: Any = None

    def open(self, title: str, done: int) -> None:
        # Steps are epochs: what is there of those after the ``done`` ones belongs to what will be done again.
        self._writer = self._library.SummaryWriter(str(self.folder / safe_name(title)), purge_step=done + 1)

    def write(self, epoch: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@TRACKERS.register("csv")
class CSV(Tracker):
    """A file for spreadsheets and pandas, a line per epoch: ``FOLDER/TITLE.csv``."""

    def open(self, title: str, done: int) -> None:
        self.path = self.folder / f"{self.key(title)}.csv"
        self._rows: list[dict[str, Any]] = []
        if done and self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= done]
        self.say_missing(len(self._rows), done)
        self._save()

    def write(self, epoch: int, values: dict[str, float]) -> None:
        self._rows.append({"epoch": epoch, **values})
        self._save()

    def _save(self) -> None:
        names = [*dict.fromkeys(name for row in [{"epoch": 0}, *self._rows] for name in row)]
        text = csv_text(names, [[row.get(name, "") for name in names] for row in self._rows])
        write_atomically(self.path, text.encode())


@TRACKERS.register("wandb")
class WandB(Tracker):
    """Weights & Biases, by default offline: ``wandb sync FOLDER/wandb/offline-run-*`` uploads it later.

    A resumed run is written anew under the same identifier, so that one offline run has each epoch once.

    Args:
        project: that the run belongs to. mode: ``"offline"``, or ``"online"``, which needs ``wandb login``.
    """

    def __init__(self, folder: Folder, display: Told = "auto", *, project: str = "pckd", mode: str = "offline") -> None:
        super().__init__(folder, display)
        if mode not in ("offline", "online"):
            raise UserError(f"the tracker wandb: mode must be offline or online, not {mode!r}")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._library = installed("wandb", "wandb")
        self.project, self.mode = project, mode

    def open(self, title: str, done: int) -> None:
        # Offline runs cannot be added to, and its own files are no interface: the rows are kept beside them.
        self._log = self.folder / f"{self.key(title)}.jsonl"
        known = self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else []
        identifier = json.loads(known[0])["id"] if known else uuid.uuid4().hex[:16]
        rows = [row for row in map(json.loads, known[1:]) if row["epoch"] <= done]
        self.say_missing(len(rows), done)
        for old in (self.folder / "wandb").glob(f"offline-run-*-{identifier}"):
            shutil.rmtree(old)
        lines = "".join(json.dumps(line) + "\n" for line in [{"id": identifier}, *rows])
        write_atomically(self._log, lines.encode())
        settings = self._library.Settings(silent=True, console="off")
        self._run = self._library.init(
            project=self.project,
            name=title,
            id=identifier,
            dir=str(self.folder),
            mode=self.mode,
            config=self.settings,
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=settings,
        )
        for row in rows if self.mode == "offline" else ():
            self._run.log(row["values"], step=row["epoch"])

    def write(self, epoch: int, values: dict[str, float]) -> None:
        self._run.log(values, step=epoch, commit=True)
        append_whole(self._log, (json.dumps({"epoch": epoch, "values": values}) + "\n").encode())

    def record(self, record: dict[str, Any]) -> None:
        rest = {name: value for name, value in record.items() if name != "arguments"}
        self._run.summary.update(json.loads(json.dumps(rest, default=str)))

    def close(self) -> None:
        self._run.finish(exit_code=int(not self.whole))


@TRACKERS.register("mlflow")
class MLflow(Tracker):
    """MLflow, in a database of its own: ``mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`` shows it.

    Several runs may have one folder. A resumed run goes on as the same one; where it had epochs that are done again,
    which MLflow cannot take back, a copy without them goes on in its place.

    Args:
        experiment: that the run belongs to.
    """

    def __init__(self, folder: Folder, display: Told = "auto", *, experiment: str = "pckd") -> None:
        super().__init__(folder, display)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._library = installed("mlflow", "mlflow")
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # of each table of a new database
        self.experiment = experiment

    def open(self, title: str, done: int) -> None:
        folder = self.folder.resolve()
        self._client = client = self._library.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        found = client.get_experiment_by_name(self.experiment)
        number = (
            found.experiment_id
            if found
            else client.create_experiment(self.experiment, artifact_location=(folder / "artifacts").as_uri())
        )
        key = self.key(title)
        runs = client.search_runs([number], f"tags.`pckd.run` = '{key}'", max_results=1)
        run = runs[0] if runs else None
        history = (
            []
            if run is None
            else [
                metric
                for name in run.data.metrics
                for metric in client.get_metric_history(run.info.run_id, name)
                if metric.step
            ]
        )
        kept = [metric for metric in history if metric.step <= done]
        self.say_missing(len({metric.step for metric in kept}), done)
        if run is not None and len(kept) < len(history):
            client.delete_run(run.info.run_id)
            run = None
        if run is None:
            run = client.create_run(number, run_name=title, tags={"pckd.run": key})
            self._log(run.info.run_id, kept)
        self._id = run.info.run_id
        client.update_run(self._id, status="RUNNING")
        known = client.get_run(self._id).data.params
        # A parameter cannot be given anew: those that a resumed run may change stay as they were.
        params = [
            self._library.entities.Param(name, str(value)[:6000])
            for name, value in self.settings.items()
            if name not in known
        ]
        client.log_batch(self._id, params=params)

    def write(self, epoch: int, values: dict[str, float]) -> None:
        now = int(1000 * time.time())
        # Of a term's label MLflow takes these characters.
        names = {re.sub(r"[^\w\-. :/]", "_", tag): value for tag, value in values.items()}
        self._log(self._id, [self._library.entities.Metric(name, value, now, epoch) for name, value in names.items()])

    def _log(self, run: str, metrics: list[Any]) -> None:
        for at in range(0, len(metrics), 1000):
            self._client.log_batch(run, metrics=metrics[at : at + 1000])

    def record(self, record: dict[str, Any]) -> None:
        self._client.log_dict(self._id, json.loads(json.dumps(record, default=str)), "result.json")

    def close(self) -> None:
        self._client.set_terminated(self._id, "FINISHED" if self.whole else "KILLED")
