"""The world of the embedded model: captioned scenes of emoji glyphs with their ground truth, drawn from a seed.

scene = EmojiScenes("train", seed=0)[12]
scene.caption, scene.objects, render(scene, 128)
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "EmojiScenes": "generator",
    "World": "world",
    "FULL": "world",
    "splits_of": "generator",
    "HoldOut": "splits",
    "SPLITS": "splits",
    "Scene": "scene",
    "Object": "scene",
    "Plan": "plan",
    "Thing": "plan",
    "Link": "plan",
    "Background": "plan",
    "render": "rendering",
    "TensorRenderer": "render_tensor",
    "holds": "geometry",
    "words": "lexicon",
    "negatives": "near_misses",
    "Keyed": "keyed",
    "NOUNS": "nouns",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
