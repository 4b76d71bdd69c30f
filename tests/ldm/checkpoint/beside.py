"""Files of networks beside a model, and what must be the same when they are read."""

import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from ldm.checkpoint.files import STEM


def write(state, path, metadata=None):
    path.parent.mkdir(exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(state, path, metadata) if path.suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    return path


def write_folder(network, json, folder):
    from ldm.checkpoint.save import _write_json

    write(network.state_dict(), folder / f"{STEM}.safetensors")
    _write_json(folder / "config.json", json)
    return folder


def same(found, network):
    assert_close(dict(found.state_dict()), dict(network.state_dict()), rtol=0, atol=0)
    assert not found.training
