"""Letting go of mapped weights: memory falls, values stay, and what was written to is left alone."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldm.checkpoint.source import open_source
from ldm.mapped import let_go, to_channels_last

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are whose")
MB = 2**20


@pytest.fixture
def weights(tmp_path):
    """A tensor of 32 MB that views a file, and its values."""
    values = torch.randn(8 * MB, generator=torch.Generator().manual_seed(0))
    save_file({"weight": values}, tmp_path / "weights.safetensors")
    return open_source(tmp_path / "weights.safetensors").tensor("weight"), values


def in_memory() -> int:
    """Bytes of mapped files that this process holds."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile"))


def test_pages_go_and_values_stay(weights):
    mapped, values = weights
    mapped.sum()
    before = in_memory()
    let_go([mapped])
    assert before - in_memory() > 30 * MB
    assert torch.equal(mapped, values)
    assert in_memory() > before - MB


def test_what_was_written_to_is_kept(weights):
    mapped, values = weights
    mapped[5] = 7.0
    let_go([mapped])
    assert mapped[5] == 7.0
    assert torch.equal(mapped[6:], values[6:])


def test_memory_that_is_no_file_is_left_alone():
    values = torch.randn(MB)
    copy = values.clone()
    let_go([values, torch.empty(0), torch.empty(3, device="meta")])
    assert torch.equal(values, copy)


def test_kernels_change_their_layout_and_not_their_values():
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Linear(8, 8)]))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    to_channels_last(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
