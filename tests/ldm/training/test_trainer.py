"""The loop: resumed, divided and accumulated runs are the same run; damage and full disks lose little."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from configs.training import LoopConfig, OptimizerConfig, RunConfig
from ldm.data.emoji_scenes import EmojiScenes, World
from ldm.training import checkpoint as checkpoints
from ldm.training.bpe import build_tokenizer
from ldm.training.denoiser import DenoiserTraining
from ldm.training.ema import Average
from ldm.training.examples import Positions
from ldm.training.log import Log
from ldm.training.optimizers import factor
from ldm.training.text import text_config
from ldm.training.trainer import Trainer
from tests.ldm.training.conftest import RUN, two_processes, with_loop
from text_encoder.clip import CLIPTextModel
from vae import AutoencoderKL


def denoiser_stage(run: RunConfig) -> DenoiserTraining:
    """The real stage on latents of noise, the same each time it is built."""
    torch.manual_seed(0)
    scenes = EmojiScenes("train", run.seed, world=World(run.world))
    tokenizer = build_tokenizer(["cat", "dog", "a", "of"], run.text.model.max_length)
    text = CLIPTextModel(text_config(run, tokenizer))
    pool = torch.randn(run.denoiser.pool, 4, 4, 4)
    return DenoiserTraining(run, scenes, AutoencoderKL(run.autoencoder.model), tokenizer, text, pool)


def train(stage: DenoiserTraining, folder: Path, until: int | None = None) -> dict[str, torch.Tensor]:
    """Weights and averages after the whole run, or after leaving it at a step."""
    trainer = Trainer(stage, folder, cpu=True)
    for report in trainer:
        if report.step == until:
            break
    average = trainer.averaged["denoiser"].state_dict()
    return {**stage.module.state_dict(), **{f"average {key}": value for key, value in average.items()}}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, run, kind):
    run = with_loop(run, steps=7, checkpoint_every=2, optimizer=OptimizerConfig(kind, rate=1e-3, warmup=2))
    whole = train(denoiser_stage(run), tmp_path / "whole")
    train(denoiser_stage(run), tmp_path / "cut", until=5)  # its last checkpoint is of step 4
    resumed = train(denoiser_stage(run), tmp_path / "cut")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    logs = [checkpoints.newest(tmp_path / name / "checkpoints") for name in ("whole", "cut")]
    pairs = zip(*(log.objects["denoiser-optimizer"] for log in logs if log is not None), strict=True)
    states = [(a["state"], b["state"]) for a, b in pairs]
    assert len(states) == {"adamw": 1, "muon": 2}[kind]
    assert all(torch.equal(a[i][key], b[i][key]) for a, b in states for i in a for key in a[i])


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, run):
    run = with_loop(run, steps=6, checkpoint_every=2)
    whole = train(denoiser_stage(run), tmp_path / "whole")
    train(denoiser_stage(run), tmp_path / "cut", until=5)
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))[-1]
    weights = newest / "denoiser.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"step-00000004 is damaged \(denoiser.safetensors is not what was written"):
        resumed = train(denoiser_stage(run), tmp_path / "cut")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_only_the_newest_checkpoints_stay(tmp_path, run):
    train(denoiser_stage(with_loop(run, steps=5, checkpoint_every=1, keep=2)), tmp_path)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000004", "step-00000005"]


def test_a_step_done_again_after_damage_outlives_the_damaged_one(tmp_path):
    small = {"a": {"weights": torch.zeros(10)}}
    for step in (1, 2):
        place = checkpoints.write(tmp_path, checkpoints.Checkpoint(step, small, {}), keep=1)
    (place / "a.safetensors").write_bytes(b"")
    checkpoints.write(tmp_path, checkpoints.Checkpoint(1, small, {}), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_changed_rates_of_the_run_file_hold_from_then_on(tmp_path, run):
    train(denoiser_stage(with_loop(run, steps=4)), tmp_path, until=2)
    changed = replace(run, denoiser=replace(run.denoiser, text_rate=0.5))
    groups = Trainer(denoiser_stage(changed), tmp_path, cpu=True).players[0].optimizers[0].param_groups
    assert {group["factor"] for group in groups} == {1.0, 0.5}


def test_accumulated_parts_are_the_whole_batch(tmp_path, run):
    whole = train(denoiser_stage(run), tmp_path / "whole")
    parts = train(denoiser_stage(with_loop(run, accumulation=2)), tmp_path / "parts")
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=2e-5, msg=name)


def test_two_processes_are_one_with_the_whole_batch(tmp_path, run):
    alone = train(denoiser_stage(run), tmp_path / "alone")
    mp.spawn(_one_of_two, args=(tmp_path,), nprocs=2)
    together = torch.load(tmp_path / "together.pt")
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=2e-5, msg=name)


def _one_of_two(rank: int, folder: Path) -> None:
    with two_processes(rank):
        weights = train(denoiser_stage(RUN), folder / "pair")
        if rank == 0:
            torch.save(weights, folder / "together.pt")


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_one_batch_is_learnt_by_heart(tmp_path, run, kind):
    """Four examples again and again, with the same noise: the loss of a working loop goes to nearly nothing."""
    run = with_loop(run, steps=250, checkpoint_every=250, log_every=250, ema=0.0)
    run = with_loop(run, optimizer=OptimizerConfig(kind, rate=3e-3, warmup=20, weight_decay=0.0))
    stage = denoiser_stage(run)
    examples = [stage.example(i) for i in range(4)]
    stage.example = lambda index: examples[index % 4]  # type: ignore[method-assign]
    batch = {key: torch.stack([one[key] for one in examples]) for key in examples[0]}
    with torch.no_grad():
        before, _ = stage.module(batch, 0)
    train(stage, tmp_path)
    with torch.no_grad():
        after, _ = stage.module(batch, 0)
    assert before > 0.8
    assert after < 0.01


def test_compiling_changes_no_names_and_no_averages(tmp_path, run):
    """What the compiler makes of a network is PyTorch's business; here it is told to run it as it stands."""
    plain = train(denoiser_stage(with_loop(run, steps=3)), tmp_path / "plain")
    run = replace(run, denoiser=replace(run.denoiser, compile=True))
    stage = denoiser_stage(with_loop(run, steps=3))
    assert stage.module.unet._compiled_call_impl is not None
    assert stage.module.text._compiled_call_impl is not None
    with torch.compiler.set_stance("force_eager"):
        compiled = train(stage, tmp_path / "compiled")
    assert compiled.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in compiled.items())


def test_without_a_compiler_the_run_goes_on_and_says_so(run, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler no-such-compiler, so the networks are not compiled"):
        stage = denoiser_stage(replace(run, denoiser=replace(run.denoiser, compile=True)))
    assert stage.module.unet._compiled_call_impl is None


def test_rates_by_part_of_the_network(run):
    trainer = Trainer(denoiser_stage(run), Path("unused"), cpu=True)
    factors = {group["factor"] for group in trainer.players[0].optimizers[0].param_groups}
    assert factors == {1.0, run.denoiser.text_rate}


def test_loss_that_is_no_number_stops_the_run(tmp_path, run):
    stage = denoiser_stage(with_loop(run, steps=4))
    stage.pool[5] = math.nan
    with pytest.raises(ValueError, match=r"became infinite or NaN in step 2;.*lower optimizer.rate"):
        train(stage, tmp_path)


def test_checkpoints_of_another_run_are_refused(tmp_path, run):
    train(denoiser_stage(run), tmp_path)
    wider = replace(run, denoiser=replace(run.denoiser, model=replace(run.denoiser.model, channels=(16, 48))))
    with pytest.raises(ValueError, match="belong to another run file"):
        train(denoiser_stage(wider), tmp_path)


def test_fewer_steps_than_done_are_refused(tmp_path, run):
    train(denoiser_stage(run), tmp_path)
    with pytest.raises(ValueError, match="holds step 4, beyond the 2 of this run"):
        train(denoiser_stage(with_loop(run, steps=2)), tmp_path)


def test_a_full_disk_keeps_earlier_checkpoints(tmp_path):
    """A process that may write files of 20 kB at most stands for a disk with too little room."""
    small = {"weights": torch.zeros(10)}
    checkpoints.write(tmp_path, checkpoints.Checkpoint(1, {"a": small}, {}), keep=2)
    script = f"""
import resource, signal, torch
from pathlib import Path
from ldm.training import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
large = {{"weights": torch.zeros(100_000)}}
try:
    checkpoint.write(Path({str(tmp_path)!r}), checkpoint.Checkpoint(2, {{"a": large}}, {{}}), keep=1)
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "the checkpoint of step 2 could not be written" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (2, 1), (2, 3), (4, 2)])
def test_each_example_is_taken_once(processes, accumulation):
    loop = LoopConfig(steps=5, batch=24, accumulation=accumulation)
    parts = [list(Positions(loop, 2, process, processes)) for process in range(processes)]
    for step in range(3):
        taken = [i for mine in parts for part in mine[step * accumulation : (step + 1) * accumulation] for i in part]
        assert sorted(taken) == list(range((step + 2) * 24, (step + 3) * 24))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="a batch of 10 cannot be shared evenly by 4 processes"):
        Positions(LoopConfig(batch=10), 0, 0, 4)


def test_average_of_constant_steps_is_the_closed_form():
    """Weights 1, 2, 3, ...: the average is the recursion's own sum, whatever its code looks like."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    average, decay = Average(module, 0.5), [min(0.5, (1 + t) / (10 + t)) for t in range(20)]
    for step in range(20):
        with torch.no_grad():
            module.weight.fill_(step + 1.0)
        average.update(module, step)
    kept = [math.prod(decay[t + 1 :]) * (1 - decay[t]) for t in range(20)]
    torch.testing.assert_close(average.module.weight.item(), sum(k * (t + 1) for t, k in enumerate(kept)))


def test_rate_rises_then_falls_along_a_cosine():
    config = OptimizerConfig(warmup=10, floor=0.1)
    rates = [factor(config, step, 110) for step in range(111)]
    torch.testing.assert_close(rates[:10], [(i + 1) / 10 for i in range(10)])
    assert all(a > b for a, b in pairwise(rates[10:]))
    torch.testing.assert_close(rates[60], 0.55)
    torch.testing.assert_close(rates[110], 0.1)
    assert factor(OptimizerConfig(warmup=0, schedule="constant"), 77, 100) == 1.0


def test_log_goes_on_behind_the_step_of_the_checkpoint(tmp_path):
    with Log(tmp_path, "a", 0, 4, progress=False) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": step / 2})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # cut off
    with Log(tmp_path, "a", 2, 4, progress=False) as log:
        log.write(3, {"loss": 9.0})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 9.0}]
