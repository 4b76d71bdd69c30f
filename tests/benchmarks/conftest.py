"""The scripts' folder on the path, as it is when one of them is started, and networks small enough to run."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from configs import presets
from configs.architecture import ModelConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = {path.stem for path in BENCHMARKS.glob("*.py")}


class Scripts:
    """The modules of the folder, as attributes."""

    def __getattr__(self, name: str) -> ModuleType:
        return __import__(name)


@pytest.fixture(scope="session")
def scripts() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    yield Scripts()
    sys.path.remove(str(BENCHMARKS))
    for name in NAMES:
        sys.modules.pop(name, None)


def small(model: ModelConfig) -> ModelConfig:
    """Narrow networks of the same kind, with all that tells the families apart."""
    text = replace(presets.CLIP_L, width=16, layers=2, heads=2, mlp_width=32)
    texts = [replace(text, projection_dim=16 if own.projection_dim else None) for own in model.text_encoders]
    pooled = 16 if len(texts) == 2 else 0
    channels = tuple(16 * min(i + 1, 2) for i in range(len(model.unet.channels)))
    depths = {
        side: tuple(tuple(min(depth, 1) for depth in row) for row in getattr(model.unet, side))
        for side in ("down_depths", "up_depths")
    }
    unet = replace(
        model.unet,
        channels=channels,
        heads=(2,) * len(channels),
        context_dim=16 * len(texts),
        norm_groups=8,
        mid_depth=1,
        size_dim=8,
        vector_dim=pooled and pooled + 6 * 8,
        **depths,
    )
    vae = replace(model.autoencoder, channels=(8, 8, 8, 8), layers=1, norm_groups=4)
    return replace(model, unet=unet, autoencoder=vae, text_encoders=tuple(texts))


@pytest.fixture
def small_models(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sd15", "sdxl"):
        monkeypatch.setitem(scripts.systems.MODELS, name, small(scripts.systems.MODELS[name]))
    for name in ("ceiling", "guard"):
        monkeypatch.setattr(scripts.meters, name, lambda *_: 1e12)
    monkeypatch.setattr(scripts.inference, "ceiling", lambda *_: 1e12)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
