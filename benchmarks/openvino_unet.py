"""diffusers' U-Net as OpenVINO runs it, in the place where a pipeline of diffusers has its own."""

from __future__ import annotations

from typing import Any

import openvino
import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


class Plain(nn.Module):
    """The U-Net with tensors alone as arguments and one as the answer, as a converter wants it."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, context: Tensor, *added: Tensor) -> Tensor:
        more = dict(zip(("text_embeds", "time_ids"), added, strict=True)) if added else None
        out: Tensor = self.unet(x, t, context, added_cond_kwargs=more, return_dict=False)[0]
        return out


class OpenVINOUNet(nn.Module):
    """Converts a float32 U-Net at its first call and compiles it for each shape it meets, to run in `dtype`."""

    def __init__(self, unet: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.dtype, self.device = unet.config, dtype, torch.device("cpu")
        self.add_embedding = getattr(unet, "add_embedding", None)  # its width is asked for
        self._source: Any = Plain(unet)
        self._model: Any = None
        self._compiled: dict[tuple[torch.Size, ...], Any] = {}

    def forward(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: Any = None, **_: Any
    ) -> tuple[Tensor]:
        added = added_cond_kwargs or {}
        extra = [added[name] for name in ("text_embeds", "time_ids") if name in added]
        inputs = tuple(each.float() for each in (x, t.reshape(1), encoder_hidden_states, *extra))
        shapes = tuple(each.shape for each in inputs)
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile(inputs)
        answer = self._compiled[shapes]([each.numpy() for each in inputs])
        return (torch.from_numpy(answer[0].copy()).to(self.dtype),)

    @torch.no_grad()
    def _compile(self, inputs: Inputs) -> Any:
        if self._model is None:
            self._model = openvino.convert_model(self._source, example_input=inputs)
        self._model.reshape({i: list(each.shape) for i, each in enumerate(inputs)})
        precision = {torch.bfloat16: "bf16", torch.float16: "f16"}.get(self.dtype, "f32")
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        return openvino.Core().compile_model(self._model, "CPU", options)
