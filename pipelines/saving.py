"""How a pipeline writes its model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.model import LatentDiffusion


class WithSaving:
    """A pipeline's model as a folder or a file."""

    model: "LatentDiffusion"

    def save_pretrained(self, folder: Any, *, safe_serialization: bool = True, **options: Any) -> None:
        """Writes the model as a folder that diffusers loads; options are those of `ldm.checkpoint.save_folder`."""
        from ldm.checkpoint import save_folder

        if not safe_serialization:
            raise ValueError("weights are written as safetensors only: leave safe_serialization out")
        save_folder(self.model, folder, **options)

    def save_single_file(self, path: Any, **options: Any) -> Path:
        """Writes the model as one file that A1111 and ComfyUI read, see `ldm.checkpoint.save_single_file`."""
        from ldm.checkpoint import save_single_file

        written: Path = save_single_file(self.model, path, **options)
        return written
