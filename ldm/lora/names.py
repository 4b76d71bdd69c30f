"""What LoRA files call the modules of a model: one table, built from the model's own modules.

A file's name is looked up, never taken apart: an underscore does not tell whether it was a dot, and a prefix does not
tell block 1 from block 10.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from ldm.checkpoint.family import described
from ldm.checkpoint.names_compvis import unet_names
from text_encoder import CLIPTextModel, PairedTextEncoder
from unet import UNet

if TYPE_CHECKING:
    from ldm.model import LatentDiffusion

# what diffusers called the attention layers, and what its first LoRA files called their changes
OLD_UNET = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}
OLD_TEXT = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}


class Names:
    """The modules with weights of a model's U-Net and text encoders, and every spelling of their names in LoRA files.

    An own name is the part and the path in it: `unet.mid_block.attentions.0.proj_in`,
    `text_encoder_2.text_model.encoder.layers.0.mlp.fc1`. Parts are called as in diffusers' folders.

    modules: own name -> module; that of a trainable layer (`ldm.lora.layers`) is its base's, whose place it has taken.
    own: a file's name without the suffix of its tensor -> own name.
    compvis: own name of a U-Net module -> its path in the original checkpoints' spelling.
    """

    def __init__(self, parts: dict[str, nn.Module]):
        self.parts = parts
        self.modules = {
            f"{part}.{path.removesuffix('.base')}": module
            for part, network in parts.items()
            for path, module in network.named_modules()
            if isinstance(getattr(module, "weight", None), nn.Parameter)
        }
        unet = parts["unet"]
        assert isinstance(unet, UNet)
        weights = [name for name in unet_names(unet.config) if name.own.endswith(".weight")]
        self.compvis = {
            f"unet.{name.own.removesuffix('.weight')}": name.original.removesuffix(".weight") for name in weights
        }
        self.own = {name: own for own in self.modules for name in self._spellings(own)}

    @classmethod
    def of(cls, model: "LatentDiffusion") -> "Names":
        """The table of a model, whose weights are not looked at and may be on `meta`."""
        return cls(parts_of(model))

    def kohya(self, own: str) -> str:
        """A module's name in kohya's files: SDXL's U-Net in the original spelling, all else in diffusers'."""
        part, _, path = own.partition(".")
        if part == "unet":
            return f"lora_unet_{flat(self.compvis[own] if self.xl else path)}"
        return f"lora_{self._te(part)}_{flat(path)}"

    @property
    def context_dim(self) -> int:
        unet = self.parts["unet"]
        assert isinstance(unet, UNet)
        return unet.config.context_dim

    @property
    def description(self) -> str:
        """What kind of model this is, for messages."""
        return f"its U-Net attends to text of width {described(self.context_dim)}"

    @property
    def xl(self) -> bool:
        return "text_encoder_2" in self.parts

    def _te(self, part: str) -> str:
        return "te2" if part == "text_encoder_2" else "te1" if self.xl else "te"

    def _spellings(self, own: str) -> Iterator[str]:
        part, _, path = own.partition(".")
        return self._of_unet(path, self.compvis[own]) if part == "unet" else self._of_text(part, path)

    def _of_unet(self, path: str, compvis: str) -> Iterator[str]:
        """diffusers and peft, with and without the part; kohya and LyCORIS, in both spellings; ComfyUI's dots."""
        for spelling in (path, *old(path, OLD_UNET)):
            yield from (f"unet.{spelling}", spelling)
            yield from (f"{prefix}base_model.model.{spelling}" for prefix in ("", "unet."))
        for name in (flat(path), flat(compvis)):
            yield from (f"lora_unet_{name}", f"lycoris_{name}")
        yield from (f"diffusion_model.{compvis}", f"model.diffusion_model.{compvis}")

    def _of_text(self, part: str, path: str) -> Iterator[str]:
        """With `text_model.` and without, as transformers from 5.6 on names what is inside; ComfyUI's by its slot."""
        bare = path.removeprefix("text_model.")
        prefixes = ("te2",) if part == "text_encoder_2" else ("te", "te1")
        slots = ("clip_g",) if part == "text_encoder_2" else ("clip_l", "clip_h")  # h: of Stable Diffusion 2
        alone = len(self.parts) == 2  # of two encoders nobody could tell which
        yield from (f"text_encoders.{slot}.transformer.{path}" for slot in slots)
        if alone:
            yield f"lycoris_{flat(path)}"
        for spelling in {path, bare}:
            yield from (f"lora_{prefix}_{flat(spelling)}" for prefix in prefixes)
            for name in (spelling, *old(spelling, OLD_TEXT)):
                yield from (f"{part}.{name}", f"{part}.base_model.model.{name}")
                if alone:
                    yield from (name, f"base_model.model.{name}")


def parts_of(model: "LatentDiffusion") -> dict[str, nn.Module]:
    """The networks that LoRAs change, by the part of a diffusers folder they are."""
    return {"unet": getattr(model.unet, "_orig_mod", model.unet), **text_models(model)}  # inside torch.compile


def text_models(model: "LatentDiffusion") -> dict[str, CLIPTextModel]:
    """The text encoders' networks by the part of a diffusers folder they are: the refiner has only the second."""
    encoder = model.text_encoder
    if isinstance(encoder, PairedTextEncoder):
        return {"text_encoder": encoder.first.model, "text_encoder_2": encoder.second.model}
    return {"text_encoder_2" if model.family == "sdxl_refiner" else "text_encoder": encoder.model}


def flat(path: str) -> str:
    """A path as kohya writes it."""
    return path.replace(".", "_")


def old(path: str, layers: dict[str, str]) -> Iterator[str]:
    """The spellings of an attention layer in diffusers' first LoRA files, from when changes were processors."""
    for layer, change in layers.items():
        if path.endswith(f".{layer}"):
            attention = path.removesuffix(f".{layer}")
            yield from (f"{attention}.{change}", f"{attention}.processor.{change}")
