"""What all tests share."""

import os
import runpy
from pathlib import Path

import pytest
import torch


def pytest_configure() -> None:
    """Processes that run tests side by side share the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(torch.get_num_threads() // workers, 1))


@pytest.fixture(scope="session")
def tiny_sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1 folder with tiny random networks, as diffusers writes it; draws 64 x 64 pixels."""
    script = Path(__file__).with_name("make_tiny_model.py")
    folder = tmp_path_factory.mktemp("tiny_sd") / "model"
    runpy.run_path(str(script))["make_tiny_model"](folder)
    return folder
