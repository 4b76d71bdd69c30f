"""`ldm doctor`: what is installed, what it runs on, and whether the packages imported are really this project's."""

import importlib
import json
import os
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.processor import native_bf16

OURS = "ldm-pipelines"
PACKAGES = ("configs", "vae", "text_encoder", "unet", "ldm", "pipelines")
LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "pillow",
    "tokenizers",
    "huggingface_hub",
)
GIB = 2**30


def version_line() -> str:
    """Versions in one line, read without importing anything."""
    return f"ldm-pipelines {version(OURS)} (torch {version('torch')}, Python {platform.python_version()})"


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def doctor(*, as_json: bool) -> int:
    """Prints the findings; 1 when a package is shadowed or missing, else 0."""
    findings = examine()
    print(json.dumps(findings, indent=2) if as_json else as_text(findings))
    return 1 if findings["problems"] else 0


def examine() -> dict[str, Any]:
    """All findings as plain JSON."""
    homes = {name: home(name) for name in PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in (OURS, *LIBRARIES)}},
        "devices": devices(),
        "packages": {name: str(path) if path else None for name, path in homes.items()},
        "problems": misplaced(homes) + rivals(),
    }


def home(package: str) -> Path | None:
    """The folder that `import package` would take; nothing is imported."""
    spec = find_spec(package)
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))).resolve()
    return Path(spec.origin or "unknown").resolve()


def misplaced(homes: dict[str, Path | None]) -> list[str]:
    """Packages that are not the neighbours of the running one."""
    beside = Path(__file__).resolve().parents[2]
    return [
        f"{name} comes from {path or 'nowhere'}, not from {beside / name}: remove what shadows it, or use a virtual "
        "environment of its own"
        for name, path in homes.items()
        if path != beside / name
    ]


def rivals() -> list[str]:
    """Other installed distributions that bring a package of the same name."""
    owners = metadata.packages_distributions()
    return [
        f"the distribution {other} also provides {name}: uninstall it, or use a virtual environment of its own"
        for name in PACKAGES
        for other in sorted(set(owners.get(name, ())))
        if other.lower().replace("_", "-") != OURS
    ]


def devices() -> dict[str, Any]:
    """The processor, and CUDA devices as far as torch can be asked."""
    cpu = {"name": "cpu", "cores": os.cpu_count(), "native_bf16": native_bf16()}
    try:
        torch = importlib.import_module("torch")
        cpu["threads"] = torch.get_num_threads()
        cpu["native_attention"] = native_attention()
        return {"cpu": cpu, "cuda": [_cuda_device(torch, i) for i in range(torch.cuda.device_count())], "error": None}
    except Exception as error:  # a broken torch is a finding
        return {"cpu": cpu, "cuda": [], "error": f"{type(error).__name__}: {error}"}


def native_attention() -> str:
    """Whether attention in bfloat16 on the CPU has its kernel."""
    try:
        return str(importlib.import_module("unet.native").availability())
    except Exception as error:  # another `unet`, which is a finding of its own
        return f"unknown, {type(error).__name__}: {error}"


def _cuda_device(torch: Any, index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / GIB, 1),
        "bf16": properties.major >= 8 or bool(torch.version.hip),
    }


def as_text(findings: dict[str, Any]) -> str:
    """The findings in aligned lines."""
    cpu = findings["devices"]["cpu"]
    bf16 = {True: "yes", False: "no, slow", None: "unknown"}[cpu["native_bf16"]]
    rows = [("cpu", f"{cpu['cores']} cores, {cpu.get('threads', 'unknown')} threads, native bfloat16: {bf16}")]
    rows.append(("cpu attention", f"kernel of our own for bfloat16: {cpu.get('native_attention', 'unknown')}"))
    rows += [
        (f"cuda:{i}", f"{gpu['name']}, {gpu['memory_gib']} GiB, bfloat16: {'yes' if gpu['bf16'] else 'no'}")
        for i, gpu in enumerate(findings["devices"]["cuda"])
    ] or [("cuda", "none")]
    if findings["devices"]["error"]:
        rows.append(("torch", f"does not load: {findings['devices']['error']}"))
    parts = [
        _table("versions", findings["versions"].items()),
        _table("devices", rows),
        _table("packages", findings["packages"].items()),
        *(f"warning: {problem}" for problem in findings["problems"]),
    ]
    if not findings["problems"]:
        parts.append("no package is shadowed")
    return "\n".join(parts)


def _table(title: str, rows: Any) -> str:
    return "\n".join([title, *(f"  {name:<17}{value}" for name, value in rows), ""])
