"""What a pipeline does with LoRAs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.model import LatentDiffusion

Scale = float | Mapping[str, float]


class WithLoras:
    """LoRAs of a pipeline's model, merged into its weights: pictures take no longer, and none leaves a trace."""

    model: "LatentDiffusion"

    def load_lora(self, path: str | Path, name: str | None = None, scale: Scale = 1.0, **hub: Any) -> str:
        """Merges a LoRA into U-Net and text encoders; returns its name, by default that of the file.

        path: a file in any layout (diffusers, peft, kohya, A1111, LyCORIS), a folder that diffusers or peft wrote, or
            either on the hub: `org/name`, `org/name/file.safetensors`.
        scale: of the change, or by blocks: {"": 0.8, "text_encoder": 0, "down_blocks.1": 0.5}, the longest prefix
            decides, "" stands for the rest (1 if not given).
        hub: `revision`, `cache_dir`, `token` and `local_files_only`.

        Warns of keys that fit nothing. Raises FileNotFoundError, and ValueError when the file is damaged or for another
        model; then nothing has changed.
        """
        import warnings

        from ldm.checkpoint.hub import resolve_part
        from ldm.lora import IN_FOLDERS

        name = self.model.loras.load(resolve_part(path, (*IN_FOLDERS, "adapter_config.json"), **hub), name, scale)
        if note := self.model.loras[name].note:
            warnings.warn(note, stacklevel=2)
        return name

    def set_lora_scales(self, scales: Mapping[str, Scale]) -> None:
        """{name: scale} for LoRAs that are loaded; the others keep theirs. ValueError for unknown names."""
        self.model.loras.set_scales(scales)

    def unload_lora(self, name: str | None = None) -> None:
        """Takes one LoRA out again, or all: weights are then what they were, bit for bit. ValueError if unknown."""
        self.model.loras.unload(name)

    def fuse_lora(self) -> None:
        """Makes the merged weights the model's own, to save it or to free the originals. There is no way back."""
        self.model.loras.fuse()

    def save_lora(
        self, path: str | Path, name: str | None = None, *, layout: str = "peft", overwrite: bool = False
    ) -> Path:
        """Writes a loaded LoRA (the only one, where no name is given) in the layout "peft" or "kohya".

        The scale is no part of it. Raises ValueError for what a layout has no place for, FileExistsError.
        """
        from ldm.lora import Names, save_lora

        loras = self.model.loras
        if name is None and len(loras) != 1:
            raise ValueError(f"{len(loras)} LoRAs are loaded ({', '.join(loras.scales)}): give the name of one")
        lora = loras[next(iter(loras.scales)) if name is None else name]
        written: Path = save_lora(lora, path, Names.of(self.model), layout=layout, overwrite=overwrite)
        return written

    @property
    def loras(self) -> dict[str, Any]:
        """Name -> scale of each LoRA that is loaded, in the order of loading."""
        return self.model.loras.scales

    # the same by diffusers' names

    def load_lora_weights(
        self, path: str | Path, *, weight_name: str | None = None, adapter_name: str | None = None, **hub: Any
    ) -> None:
        """As `load_lora`; `weight_name` is the file in a folder or repository."""
        self.load_lora(f"{path}/{weight_name}" if weight_name else path, adapter_name, **hub)

    def unload_lora_weights(self) -> None:
        self.unload_lora()

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Any = None) -> None:
        """Only these act, with these scales (1 by default); the others stay loaded with scale 0."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = (
            list(adapter_weights) if isinstance(adapter_weights, (list, tuple)) else [adapter_weights] * len(names)
        )
        if len(weights) != len(names):
            raise ValueError(f"{len(names)} names but {len(weights)} weights; give one for each, or one for all")
        chosen = {name: 1.0 if weight is None else weight for name, weight in zip(names, weights, strict=True)}
        self.set_lora_scales({**dict.fromkeys(self.loras, 0.0), **chosen})

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            self.unload_lora(name)
