"""The forecast against what a step then takes, and two real steps that leave no trace."""

import gc
import json
import shutil
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.profiler import ProfilerActivity, profile

from ldm.training import examples, forecast
from ldm.training.examples import batches
from ldm.training.finetuning import FineTuning
from ldm.training.forecast import STEPS, WARM, memory, seconds
from ldm.training.ready import ready
from ldm.training.stage import Batch
from ldm.training.tracker import Tracker
from ldm.training.trainer import Trainer
from tests.ldm.checkpoint.conftest import sdxl
from tests.ldm.training.tuning import config_of, no_draw, pictures

BIG = {"size": 64}
CASES = {
    "full of text too, in bfloat16, averages": (
        "full",
        {"trains": {"text": True}, "loop": {"precision": "bf16", "ema_lengths": [0.05, 0.1]}},
    ),
    "lora by muon, in two parts": ("lora", {"loop": {"accumulation": 2, "optimizer": {"kind": "muon"}, "ema": 0.0}}),
    "lora of sdxl in bfloat16": ("lora", {"loop": {"precision": "bf16"}, "lora": {"dora": True, "rank": 2}}),
    "inversion, computed again": ("inversion", {"loop": {"checkpointing": True}}),
    "controlnet": ("controlnet", {}),
    "autoencoder": ("autoencoder", {}),
}


def stage_of(folder: Path, model: Path, mode: str, **tables) -> FineTuning:
    pictures(folder / "pictures", hints=folder / "hints")
    config = config_of(model, folder / "pictures", mode, **{"data": BIG, **tables})
    return ready(config, folder, no_draw, progress=False, cpu=True, dry=True).stage


def step_of(stage: FineTuning, parts: list[Batch], folder: Path):
    """A run that has made its first step, and what it then holds: weights, averages, moments, the parts of a batch."""
    trainer = Trainer(stage, folder / "run", cpu=True)
    active = trainer.players[0]
    active.advance(parts, 0, stage.loop.steps)
    modules = [active.raw, *([active.average.module] if active.average else [])]
    held = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    held += [tensor for power in active.powers for tensor in power.weights.values()]
    held += [v for o in active.optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
    held += [tensor for part in parts for tensor in part.values()]
    gc.collect()
    return active, {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}


@pytest.mark.parametrize("case", CASES)
def test_the_forecast_is_what_torch_then_allocates(tmp_path, tiny_sd_folder, case):
    (mode, tables), model = CASES[case], tiny_sd_folder
    if "sdxl" in case:
        sdxl(tmp_path / "parts").save_pretrained(model := tmp_path / "model")
    if mode == "autoencoder":
        model = with_wider_vae(model, tmp_path / "model")
    stage = stage_of(tmp_path, model, mode, **tables)
    parts = list(islice(batches(stage, 0, 0, 1), stage.loop.accumulation))
    foreseen = memory(stage.module, parts[0], stage.loop)
    assert not foreseen.note
    active, held = step_of(stage, parts, tmp_path)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        active.advance(parts, 1, stage.loop.steps)
    assert foreseen.peak == pytest.approx(sum(held.values()) + most_allocated(profiler), rel=0.02)


def with_wider_vae(model: Path, copy: Path) -> Path:
    """A CPU's kernels take channels in blocks of 16: real autoencoders have whole blocks, that of the tests has not."""
    shutil.copytree(model, copy)
    config = json.loads((model / "vae" / "config.json").read_text())
    config["block_out_channels"] = [2 * channels for channels in config["block_out_channels"]]
    diffusers.AutoencoderKL.from_config(config).save_pretrained(copy / "vae")
    return copy


def most_allocated(profiler: profile) -> int:
    """Bytes beyond those at the beginning."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_its_kinds_are_those_of_torchs_own_tracker(tmp_path, tiny_sd_folder, monkeypatch):
    whole = {"decoder_only": False}  # that tracker knows no frozen weights
    monkeypatch.setattr(Tracker, "_pass", lambda self, size: None)  # nor what kernels take
    stage = stage_of(tmp_path, tiny_sd_folder, "autoencoder", trains=whole, loop={"ema": 0.0})
    part = next(batches(stage, 0, 0, 1))
    foreseen = memory(stage.module, part, stage.loop)
    trainer = Trainer(stage, tmp_path, cpu=True)
    active, tracker = trainer.players[0], MemTracker()
    active.advance([part], 0, 4)
    tracker.track_external(active.raw, *active.optimizers, *part.values())
    with tracker:
        active.advance([part], 1, 4)
    (found,) = tracker.get_tracker_snapshot("peak").values()
    kinds = {getattr(kind, "value", kind): size for kind, size in found.items()}
    assert foreseen.peak == pytest.approx(kinds["Total"], rel=0.005)
    assert foreseen.parameters == kinds["Parameter"] + kinds["Buffer"]
    own = foreseen.optimizer + foreseen.temporaries  # what a step of the optimizer makes counts as its own there
    assert own == pytest.approx(kinds["Optstate"] + kinds["Temp"], rel=0.005)
    assert foreseen.activations == pytest.approx(kinds["Activation"] + kinds["Other"], rel=0.005)


def test_no_weight_is_read_or_changed_by_it(tmp_path, tiny_sd_folder):
    stage = stage_of(tmp_path, tiny_sd_folder, "lora", loop={"checkpointing": True})
    part = next(batches(stage, 0, 0, 1))
    before = {name: value for name, value in vars(stage.module).items() if name != "_modules"}
    values = {name: value.clone() for name, value in stage.module.state_dict().items()}
    for parameter in stage.module.parameters():
        parameter.data.fill_(torch.nan)  # whoever reads them would notice
    foreseen = memory(stage.module, part, stage.loop)
    assert not foreseen.note
    assert all(value.isnan().all() for value in stage.module.parameters())
    assert {name: value for name, value in vars(stage.module).items() if name != "_modules"} == before
    stage.module.load_state_dict(values)
    loss, _ = stage.module(part, 0)  # nothing fake is left in it
    assert loss.isfinite()


def test_pictures_averages_and_8_bit_moments_count(tmp_path, tiny_sd_folder):
    stage = stage_of(tmp_path, tiny_sd_folder, "autoencoder", loop={"ema": 0.0})
    part, loop = next(batches(stage, 0, 0, 1)), stage.loop
    more = {name: torch.cat([value, value]) for name, value in part.items()}
    eight = replace(loop, optimizer=replace(loop.optimizer, kind="adamw8bit"), ema=0.9)
    one, two, other = (
        memory(stage.module, part, loop),
        memory(stage.module, more, loop),
        memory(stage.module, part, eight),
    )
    assert two.activations + two.temporaries > 1.8 * (one.activations + one.temporaries)
    trained = sum(parameter.nbytes for parameter in stage.module.parameters() if parameter.requires_grad)
    assert other.parameters - one.parameters == trained
    assert other.optimizer == pytest.approx(one.optimizer / 4, rel=0.01)


def test_without_fake_tensors_it_is_a_guess_that_says_so(tmp_path, tiny_sd_folder, monkeypatch):
    stages = {mode: stage_of(tmp_path / mode, tiny_sd_folder, mode) for mode in ("lora", "autoencoder")}
    parts = {mode: next(batches(stage, 0, 0, 1)) for mode, stage in stages.items()}
    traced = {mode: memory(stage.module, parts[mode], stage.loop) for mode, stage in stages.items()}
    monkeypatch.setattr(forecast, "_hollow", None)
    for mode, stage in stages.items():
        guessed = memory(stage.module, parts[mode], stage.loop)
        assert "guess" in guessed.note
        assert guessed.parameters == traced[mode].parameters
        assert traced[mode].peak / 2 < guessed.peak < 2 * traced[mode].peak


@pytest.mark.parametrize("mode", ["full", "autoencoder"])
def test_the_steps_on_trial_are_real_and_leave_no_trace(tmp_path, tiny_sd_folder, monkeypatch, mode):
    stage = stage_of(tmp_path, tiny_sd_folder, mode, loop={"accumulation": 2, "precision": "bf16", "steps": 1})
    module, served, losses, values = stage.module, [], [], []
    module.register_forward_hook(lambda module, given, found: losses.append(found[0].detach().clone()))
    serve, train = examples._Examples.__getitem__, Trainer._train
    monkeypatch.setattr(
        examples._Examples, "__getitem__", lambda self, index: served.append(index) or serve(self, index)
    )

    def noted(self, source):
        numbers = train(self, source)
        values.append(next(p for p in module.parameters() if p.requires_grad).detach().clone())
        return numbers

    monkeypatch.setattr(Trainer, "_train", noted)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    attributes, files, chance = set(vars(module)), sorted(tmp_path.rglob("*")), torch.get_rng_state()
    modes = [part.training for part in module.modules()]
    found = seconds(stage, cpu=True)
    steps = WARM + STEPS
    assert len(values) == steps
    assert served == list(range(2 * steps))
    assert len({float(loss) for loss in losses}) == len(losses) == 2 * steps
    assert not any(torch.equal(a, b) for a, b in pairwise(values)), "these are no steps"
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert set(vars(module)) == attributes
    assert [part.training for part in module.modules()] == modes
    assert sorted(tmp_path.rglob("*")) == files
    assert torch.equal(torch.get_rng_state(), chance)
    assert found.seconds > 0
    assert 0 < found.waiting < 1


def test_weights_are_put_back_where_a_step_fails(tmp_path, tiny_sd_folder, monkeypatch):
    stage = stage_of(tmp_path, tiny_sd_folder, "full")
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    train = Trainer._train

    def failing(self, source):
        if self.step == 2:
            raise RuntimeError("out of memory")
        return train(self, source)

    monkeypatch.setattr(Trainer, "_train", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        seconds(stage, cpu=True)
    after = stage.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
