"""The networks are the published ones: keys, shapes, cost, and outputs for a fixed filling of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from registry import BACKBONES, build

GOLDEN: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "backbones_100.json").read_text())


def fill(network: nn.Module) -> None:
    """Overwrite every weight with seeded normal numbers, one seed per key in sorted order."""
    state = network.state_dict()
    for j, key in enumerate(sorted(state)):
        if key.endswith("num_batches_tracked"):
            continue
        value = state[key]
        r = np.random.RandomState(1000 + j).standard_normal(value.numel()).reshape(tuple(value.shape))
        if key.endswith("running_var"):
            r = 1 + 0.1 * np.abs(r)
        elif value.dim() == 1:
            r = (1 if key.endswith("weight") else 0) + 0.1 * r
        else:
            r = r * 0.5 * np.sqrt(2 / value[0].numel())
        value.copy_(torch.from_numpy(r))


def wave() -> Tensor:
    return torch.from_numpy(1.5 * np.sin(0.0137 * np.arange(2 * 3 * 32 * 32))).reshape(2, 3, 32, 32).float()


@pytest.fixture(params=sorted(GOLDEN), scope="module")
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Any]]:
    return build(BACKBONES, request.param, 100).eval(), GOLDEN[request.param]


def test_all_golden_networks_are_registered() -> None:
    assert set(GOLDEN) <= set(BACKBONES.names())
    assert len(GOLDEN) == 22


def test_is_the_published_network(case: tuple[nn.Module, dict[str, Any]]) -> None:
    network, golden = case
    state = network.state_dict()
    assert list(state) == list(golden["state_dict"])
    assert {key: list(value.shape) for key, value in state.items()} == golden["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == golden["params"]
    assert network.classifier.in_features == golden["embedding_dim"]

    fill(network)
    with torch.no_grad():
        output = network(wave())
    assert [list(m.shape[1:]) for m in output.maps] == golden["feature_maps"]
    torch.testing.assert_close(output.logits[:, :10], torch.tensor(golden["logits"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.embedding[0, :8], torch.tensor(golden["embedding"]), rtol=1e-4, atol=1e-4)
    assert float(output.embedding.mean()) == pytest.approx(golden["embedding_mean"], rel=1e-4)


def test_costs_what_it_should(case: tuple[nn.Module, dict[str, Any]]) -> None:
    network, golden = case
    macs = FlopCountAnalysis(network, torch.zeros(1, 3, 32, 32))
    macs.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    assert int(macs.total()) == golden["macs_fvcore"]
