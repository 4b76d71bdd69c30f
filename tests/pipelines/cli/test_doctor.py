"""`ldm doctor` in a healthy place and in sick ones."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_healthy(ldm: Callable[..., Any]) -> None:
    ran = ldm("doctor")
    assert (ran.status, ran.err) == (0, "")
    for name in ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow", "tokenizers"):
        assert any(line.split() == [name, version(name)] for line in ran.out.splitlines())
    assert f"  text_encoder     {ROOT / 'text_encoder'}\n" in ran.out
    assert ran.out.endswith("no package is shadowed\n")
    assert "cores" in ran.out
    assert "  cpu attention    kernel of our own for bfloat16: " in ran.out


def test_json(ldm: Callable[..., Any]) -> None:
    ran = ldm("doctor", "--json")
    findings = json.loads(ran.out)
    assert ran.status == 0
    assert findings["versions"]["huggingface_hub"] == version("huggingface_hub")
    assert findings["packages"] == {
        name: str(ROOT / name) for name in ("configs", "vae", "text_encoder", "unet", "ldm", "pipelines")
    }
    assert findings["problems"] == []
    assert findings["devices"]["cpu"]["cores"] >= 1


def examine(folder: Path, environment: dict[str, str]) -> Any:
    code = "import sys; from pipelines.cli import main; sys.exit(main(['doctor', '--json']))"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**environment, "PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    return ran.returncode, json.loads(ran.stdout)


@pytest.mark.parametrize("kind", ["package", "module"])
def test_shadowed_package(tmp_path: Path, environment: dict[str, str], kind: str) -> None:
    file = tmp_path / ("configs/__init__.py" if kind == "package" else "configs.py")
    file.parent.mkdir(exist_ok=True)
    file.touch()
    status, findings = examine(tmp_path, environment)
    assert status == 1
    place = file.parent if kind == "package" else file
    assert [problem.split(": ")[0] for problem in findings["problems"]] == [
        f"configs comes from {place}, not from {ROOT / 'configs'}"
    ]


def test_rival_distribution(tmp_path: Path, environment: dict[str, str]) -> None:
    info = tmp_path / "rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("unet\n")
    status, findings = examine(tmp_path, environment)
    assert status == 1
    assert [problem.split(":")[0] for problem in findings["problems"]] == ["the distribution rival also provides unet"]


def test_torch_that_does_not_load_is_reported(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so is missing')")
    status, findings = examine(tmp_path, environment)
    assert status == 0
    assert findings["devices"]["error"] == "OSError: libcudart.so is missing"


def test_the_kernel_for_attention_is_told(ldm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDM_NATIVE", "0")
    said = "off, by LDM_NATIVE in the environment"
    assert f"kernel of our own for bfloat16: {said}\n" in ldm("doctor").out
    assert json.loads(ldm("doctor", "--json").out)["devices"]["cpu"]["native_attention"] == said


def test_another_unet_has_no_kernel_to_tell_of(tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/__init__.py").touch()
    status, findings = examine(tmp_path, environment)
    assert status == 1
    assert findings["devices"]["cpu"]["native_attention"].startswith("unknown, ModuleNotFoundError")
    assert findings["devices"]["error"] is None


def test_cuda_devices_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from pipelines.cli import doctor

    card = SimpleNamespace(name="Card", total_memory=8 * 2**30, major=7)
    cuda = SimpleNamespace(device_count=lambda: 1, get_device_properties=lambda _: card)
    fake = SimpleNamespace(get_num_threads=lambda: 3, cuda=cuda, version=SimpleNamespace(hip=None))
    monkeypatch.setitem(sys.modules, "torch", fake)
    findings = doctor.examine()
    assert findings["devices"]["cuda"] == [{"name": "Card", "memory_gib": 8.0, "bf16": False}]
    assert "cuda:0           Card, 8.0 GiB, bfloat16: no" in doctor.as_text(findings)
