"""A trained network alone, for programs that know nothing of this library: ONNX, torch.export, safetensors, hubs."""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo import Preprocessing, preprocessing_of, read_metadata, save_weights
from model_zoo.detection import Detector
from model_zoo.probe import borrowed, evaluating
from model_zoo.segmentation import Segmenter
from pckd.hub import write_folder
from pckd.saved import load
from registry import UserError
from registry.files import write_atomically

__all__ = ["export"]

FORMATS = (".onnx", ".pt2", ".safetensors")
OPSET = 18


def export(
    network: nn.Module | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    normalize: bool = False,
    license: str | None = None,
) -> Path:
    """Write a network alone, in the format that the file's name ends in, and return the path.

    ``.onnx`` (``pip install 'pckd[onnx]'``) and ``.pt2`` (``torch.export``) hold one function, from ``images``
    [B, C, H, W] of any B to ``logits``: [B, K], of segmentation [B, K + 1, H, W]. ``.safetensors`` holds the weights.
    Each also says how images are prepared and what the classes are called, as JSON: in the metadata, or the extra file,
    ``preprocessing``. Without an ending it is a folder in the layout of model hubs: ``model.safetensors``,
    ``config.json`` and a model card ``README.md``, with a run's figures, its teacher and its command where the file is
    in a run's folder. :func:`pckd.load` takes the folder, and ``timm.create_model("local-dir:FOLDER")`` that of a
    network of timm's. Nothing is sent.

    Args:
        network: with a record of its preprocessing, or the file of one (:func:`pckd.load`).
        normalize: take images in [0, 1] and normalize them inside; by default they are normalized already.
        license: for the model card, such as ``"apache-2.0"``; by default ``"unknown"``.

    Raises:
        UserError: another ending, no record, a package that is missing, or a network that cannot be written so.
    """
    path = Path(path)
    if path.suffix and path.suffix not in FORMATS and not path.is_dir():
        raise UserError(f"{path}: give a file that ends in {', '.join(FORMATS)}, or a folder, which has no ending")
    folder = path.suffix not in FORMATS
    if license is not None and not folder:
        raise UserError(f"{path}: a license is for a folder, whose model card names it; leave it out")
    source = None if isinstance(network, nn.Module) else Path(network).expanduser()
    known: dict[str, Any] = {}
    if not isinstance(network, nn.Module):
        known = {key: value for key, value in read_metadata(network).items() if key not in ("preprocessing", "format")}
        network = load(network)
    record = preprocessing_of(network)
    if record is None or not record.whole:
        raise UserError("the network has no record of its classes and preprocessing; see model_zoo.set_preprocessing")
    if (folder or path.suffix == ".safetensors") and normalize:
        raise UserError(f"{path}: weights alone cannot normalize; leave normalize out, or write .onnx or .pt2")
    if folder:
        return write_folder(
            network, record, known, path.expanduser(), source=source, license="unknown" if license is None else license
        )
    if path.suffix == ".safetensors":
        return save_weights(network, path, **known)
    if isinstance(network, Detector):
        raise UserError(f"{path}: detectors are written as .safetensors only: what they find has no fixed shape")
    writer: Callable[..., bytes] = _onnx if path.suffix == ".onnx" else _program
    with borrowed(network), evaluating(network), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight = next(network.parameters(), torch.empty(0))
        example = torch.zeros(2, len(record.mean), *record.image_size, dtype=weight.dtype, device=weight.device)
        module = _Answer(network, record, normalize).to(example).eval()
        try:
            data = writer(module, example, json.dumps(record.as_metadata()))
        except ImportError as error:
            raise UserError(f"{path}: writing it needs onnx and onnxscript: pip install 'pckd[onnx]'") from error
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{path}: {type(network).__name__} cannot be written in this format: {reason}") from error
    return write_atomically(path, data)


class _Answer(nn.Module):
    """The logits of images."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, record: Preprocessing, normalize: bool) -> None:
        super().__init__()
        self.network, self.normalize, self.size = network, normalize, record.image_size
        for name, values in (("mean", record.mean), ("std", record.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = (images - self.mean) / self.std if self.normalize else images
        if isinstance(self.network, Segmenter):
            return F.interpolate(self.network(x).maps[-1], self.size, mode="bilinear", align_corners=False)
        logits: Tensor = self.network(x).logits
        return logits


def _program(module: nn.Module, example: Tensor, record: str) -> bytes:
    buffer = io.BytesIO()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (example,), dynamic_shapes={"images": {0: batch}})
    torch.export.save(program, buffer, extra_files={"preprocessing": record})
    return buffer.getvalue()


def _onnx(module: nn.Module, example: Tensor, record: str) -> bytes:
    import onnx
    import onnxscript  # noqa: F401 - what torch writes with

    program: Any = torch.onnx.export(
        module,
        (example,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    model = program.model_proto
    onnx.helper.set_model_props(model, {"preprocessing": record})
    data: bytes = model.SerializeToString()
    return data
