"""What importing costs, seen in fresh interpreters; and that it does nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLOW = ("diffusers", "transformers", "huggingface_hub", "accelerate", "peft", "datasets", "scipy", "matplotlib")
HEAVY = ("torch", "numpy", "PIL", "tokenizers", "safetensors", "tqdm", *SLOW)


def loaded(statement: str, names: tuple[str, ...], folder: Path) -> list[str]:
    """Which of these modules a fresh interpreter holds after the statement, which must print and write nothing."""
    code = f"{statement}\nimport sys\nprint([name for name in {names!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=True
    )
    assert ran.stderr == ""
    assert list(folder.iterdir()) == []
    found = eval(ran.stdout)  # one list, so nothing else was printed
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("statement", ["from pipelines import TextToImagePipeline", "from pipelines import Result"])
def test_the_pipeline_imports_no_other_library_of_the_field(statement: str, tmp_path: Path) -> None:
    assert loaded(statement, SLOW, tmp_path) == []


def test_a_module_once_imported_is_seen(tmp_path: Path) -> None:
    assert loaded("import huggingface_hub", ("huggingface_hub",), tmp_path) == ["huggingface_hub"]


@pytest.mark.parametrize(
    "statement",
    [
        "import pipelines, ldm, ldm.checkpoint, vae, text_encoder, configs",
        "from pipelines.cli import main",
        "from configs import presets, interchange",
        "import text_encoder.prompt",
    ],
)
def test_packages_load_their_contents_on_first_use(statement: str, tmp_path: Path) -> None:
    assert loaded(statement, HEAVY, tmp_path) == []


def test_unknown_names_are_attribute_errors() -> None:
    import pipelines

    with pytest.raises(AttributeError, match="TextToVideoPipeline"):
        pipelines.TextToVideoPipeline  # noqa: B018
