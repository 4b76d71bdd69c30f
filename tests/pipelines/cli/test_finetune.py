"""`ldm train` with a run file of fine-tuning, as a person meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from configs.files import templates
from pipelines.cli import main
from pipelines.text_to_image import TextToImagePipeline
from tests.ldm.training.tuning import pictures

RUN = """
mode = "{mode}"
name = "tiny"
model = "{model}"

[data]
path = "{pictures}"
size = 32
bucket_step = 8
smallest = 16

[loop]
steps = 4
batch = 2
precision = "no"
checkpoint_every = 2
log_every = 1
sample_every = 2
{loop}

[validation]
prompts = ["a red square", "a blue square"]
steps = 2
measure_every = 2
"""


@pytest.fixture
def run_file(tmp_path, tiny_sd_folder, monkeypatch):
    """Writes a run file for a folder of pictures, and goes where it is."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "pictures")

    def write(mode: str = "lora", more: str = "", loop: str = "") -> str:
        text = RUN.format(mode=mode, model=tiny_sd_folder, pictures=tmp_path / "pictures", loop=loop)
        (tmp_path / "run.toml").write_text(text + more)
        return "run.toml"

    return write


def test_a_lora_is_trained_and_drawn_with(run_file, tmp_path, tiny_sd_folder, capsys):
    assert main(["train", run_file(), "--no-progress"]) == 0
    made = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.name for path in made} >= {"tiny.safetensors", "tiny-diffusers.safetensors"}
    assert all(path.exists() for path in made)
    lines = [json.loads(line) for line in (tmp_path / "runs/tiny/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "tuned/loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "trained" in line] == [0, 2, 4]
    grid = Image.open(tmp_path / "runs/tiny/samples/step-00000004.png")
    assert grid.width > 128
    pipe = TextToImagePipeline.from_pretrained(tiny_sd_folder)
    before = pipe("a red square", num_inference_steps=2, seed=1, output_type="latent").images
    for name in ("tiny.safetensors", "tiny-diffusers.safetensors"):
        pipe.load_lora(tmp_path / "runs/tiny/result" / name)
        after = pipe("a red square", num_inference_steps=2, seed=1, output_type="latent").images
        assert not torch.equal(before, after)
        pipe.unload_lora()


def test_what_is_left_says_nothing_of_paths_and_captions(run_file, tmp_path):
    assert main(["train", run_file(), "--no-progress"]) == 0
    for path in (tmp_path / "runs/tiny/result").glob("*.safetensors"):
        with safe_open(path, "pt") as opened:
            told = json.dumps(opened.metadata())
        assert str(tmp_path) not in told
        assert "square" not in told
        assert "modelspec.sai_model_spec" in told


def test_a_second_start_says_that_the_run_is_finished(run_file, tmp_path, capsys):
    assert main(["train", run_file(), "--no-progress"]) == 0
    first = capsys.readouterr().out
    assert main(["train", run_file(), "--no-progress"]) == 0
    second = capsys.readouterr()
    assert second.out == first
    assert "is finished" in second.err


def test_a_longer_run_goes_on(run_file, tmp_path, capsys):
    assert main(["train", run_file(), "--no-progress", "--steps", "2"]) == 0
    assert main(["train", run_file(), "--no-progress"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "runs/tiny/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "tuned/loss" in line] == [1, 2, 3, 4]


def test_verify_proves_exact_resume_and_leaves_nothing(run_file, tmp_path, capsys):
    assert main(["train", run_file(), "--no-progress", "--verify"]) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", templates())
def test_new_writes_a_run_file_once(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--new", kind]) == 0
    assert capsys.readouterr().out.strip() == f"{kind}.toml"
    assert main(["train", "--new", kind]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("[lora]\nrnak = 4\n", "unknown key lora.rnak; did you mean lora.rank?"),
        ('[objective]\nweighting = "minsnr"\n', '"none" or "min_snr"'),
        ("[objective]\nzero_terminal_snr = true\n", "has no signal at the last step"),
    ],
)
def test_a_run_file_with_a_mistake_is_explained(run_file, capsys, more, text):
    assert main(["train", run_file(more=more), "--no-progress"]) == 2
    assert text in capsys.readouterr().err


def test_an_odd_batch_beside_a_prior_is_refused(run_file, capsys):
    path = Path(run_file(more='[prior]\nprompts = ["a square"]\n'))
    path.write_text(path.read_text().replace("batch = 2", "batch = 3"))
    assert main(["train", str(path), "--no-progress"]) == 2
    assert "an even number for each accumulated part" in capsys.readouterr().err


def test_an_empty_folder_a_file_that_is_no_picture_and_captions_missing(run_file, tmp_path, capsys):
    (tmp_path / "pictures" / "broken.png").write_bytes(b"not a picture")
    assert main(["train", run_file(), "--no-progress"]) == 0  # left out, and said so
    assert "broken.png" in capsys.readouterr().err
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    assert main(["train", run_file(), "--no-progress", "-o", "other"]) == 2
    assert "pictures" in capsys.readouterr().err


def test_a_model_of_the_wrong_kind_is_refused_by_name(run_file, tmp_path, capsys):
    torch.save({"x": torch.zeros(2)}, tmp_path / "weights.pt")
    path = Path(run_file())
    lines = [
        f'model = "{tmp_path / "weights.pt"}"' if line.startswith("model") else line
        for line in path.read_text().splitlines()
    ]
    path.write_text("\n".join(lines))
    assert main(["train", str(path), "--no-progress"]) == 2
    assert "weights.pt" in capsys.readouterr().err


def test_options_of_the_other_kind_of_run_are_refused(run_file, capsys):
    assert main(["train", run_file(), "--stage", "denoiser"]) == 2
    assert "--stage and --from are for emoji scenes" in capsys.readouterr().err
    assert main(["train", "emoji-small", "--check"]) == 2
    assert "ldm train --new lora" in capsys.readouterr().err


def test_a_full_disk_loses_no_checkpoint(run_file, tmp_path, capsys):
    """A process that may write small files alone stands for a disk that is full; the same command then goes on."""
    file = run_file()
    assert main(["train", file, "--no-progress", "--steps", "2"]) == 0
    script = """
import resource, signal, sys
from pipelines.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
sys.exit(main(["train", sys.argv[1], "--no-progress"]))
"""
    done = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "ldm: the checkpoint of step 4 could not be written" in done.stderr
    assert "earlier ones are kept: make room and start the same command again to go on" in done.stderr
    assert [path.name for path in (tmp_path / "runs/tiny/checkpoints").iterdir()] == ["step-00000002"]
    assert main(["train", file, "--no-progress"]) == 0
    assert "result/tiny.safetensors" in capsys.readouterr().out
