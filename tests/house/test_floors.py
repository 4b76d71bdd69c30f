"""Imports only go down: pipelines > ldm > {unet, vae, text_encoder} > configs."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {"configs": 0, "unet": 1, "vae": 1, "text_encoder": 1, "ldm": 2, "pipelines": 3}
LAZY = {"diffusers", "transformers"}  # slow to import: only where they are used


def violations(root: Path) -> list[str]:
    """What the imports of the six packages under `root` do that they may not."""
    return [
        f"{path.relative_to(root)}:{line} imports {name}"
        for package in FLOORS
        for path in sorted((root / package).rglob("*.py"))
        for name, line, lazy in imports(ast.parse(path.read_text(encoding="utf-8")))
        if not allowed(path.relative_to(root).parts, name.split("."), lazy)
    ]


def imports(node: ast.AST, lazy: bool = False) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether it is imported only inside a function or for type checkers) under a node of the tree."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, lazy) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield "." * child.level + (child.module or ""), child.lineno, lazy
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) or _for_type_checkers(child)
        yield from imports(child, lazy or inside)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def allowed(place: tuple[str, ...], name: list[str], lazy: bool) -> bool:
    package, top = place[0], name[0]
    if top in sys.stdlib_module_names:
        return True
    if place[:2] == ("ldm", "diffusion"):
        return top in ("torch", "configs") or name[:2] == ["ldm", "diffusion"]
    if top in FLOORS:
        return top == package or FLOORS[top] < FLOORS[package]
    return package != "configs" and top != "" and (lazy or top not in LAZY)


def test_imports_only_go_down() -> None:
    assert all((ROOT / package).is_dir() for package in FLOORS)
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "code", "fine"),
    [
        ("pipelines/a.py", "from ldm.model import LatentDiffusion\nfrom vae.pixels import to_pil", True),
        ("ldm/a.py", "import unet, vae\nfrom configs.presets import SD15", True),
        ("ldm/diffusion/a.py", "import torch\nfrom ldm.diffusion.grid import Grid\nimport math", True),
        ("vae/a.py", "def f():\n    import diffusers", True),
        ("text_encoder/a.py", "import tokenizers\nfrom text_encoder.prompt import parse", True),
        ("unet/a.py", "if TYPE_CHECKING:\n    import transformers", True),
        ("ldm/a.py", "from pipelines import TextToImagePipeline", False),  # up
        ("ldm/a.py", "def f():\n    import pipelines.request", False),  # up, lazily
        ("unet/a.py", "from vae.layers import Resnet", False),  # sideways
        ("vae/a.py", "import text_encoder", False),
        ("configs/a.py", "import torch", False),
        ("configs/a.py", "def f():\n    import yaml", False),
        ("configs/a.py", "from unet import UNet", False),
        ("ldm/diffusion/a.py", "from ldm.model import LatentDiffusion", False),
        ("ldm/diffusion/a.py", "import numpy", False),
        ("ldm/diffusion/a.py", "from unet import UNet", False),
        ("pipelines/a.py", "import transformers", False),  # at module level
        ("ldm/a.py", "try:\n    from diffusers.utils import logging\nexcept ImportError:\n    pass", False),
        ("vae/a.py", "class A:\n    import diffusers", False),
        ("vae/a.py", "from .. import ldm", False),  # relative imports hide where they lead
    ],
)
def test_the_check_tells_right_from_wrong(tmp_path: Path, file: str, code: str, fine: bool) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(code)
    assert (violations(tmp_path) == []) == fine
