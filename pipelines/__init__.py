"""Floor 3: what a person starts. Names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.interop import from_diffusers as from_diffusers
    from pipelines.interop import to_diffusers as to_diffusers
    from pipelines.request import TextToImageRequest as TextToImageRequest
    from pipelines.result import Result as Result
    from pipelines.stream import Interrupted as Interrupted
    from pipelines.stream import Stream as Stream
    from pipelines.text_to_image import TextToImagePipeline as TextToImagePipeline

_HOMES = {
    "Interrupted": "stream",
    "Result": "result",
    "Stream": "stream",
    "TextToImagePipeline": "text_to_image",
    "TextToImageRequest": "request",
    "from_diffusers": "interop",
    "to_diffusers": "interop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
    return getattr(import_module(f"pipelines.{_HOMES[name]}"), name)
