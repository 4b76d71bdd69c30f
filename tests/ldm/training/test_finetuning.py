"""Fine-tuning: exact resume in every mode, the same run however it is divided, and what a stage hands to its module."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from ldm.training.finetune import Judge
from ldm.training.log import Log
from ldm.training.probe import Overfitting
from ldm.training.trainer import Trainer
from tests.ldm.checkpoint.conftest import sd1, sdxl, sdxl_refiner
from tests.ldm.training.conftest import two_processes
from tests.ldm.training.tuning import assert_alike, begun, config_of, pictures, train, with_loop

MODES = {
    "lora": {
        "lora": {"rank": 2, "targets": ["attention", "feedforward", "convolutions"], "dora": True},
        "trains": {"text": True},
    },
    "full": {"trains": {"text": True}, "loop": {"ema_lengths": [0.1]}},
    "inversion": {},
    "controlnet": {},
    "autoencoder": {},
    "dreambooth": {"prior": {"prompts": ["a square", "a circle"], "count": 3}, "loop": {"batch": 4}},
}


def run_of(mode: str, model: Path, folder: Path):
    pictures(folder / "pictures", hints=folder / "hints")
    return config_of(model, folder / "pictures", "full" if mode == "dreambooth" else mode, **MODES[mode])


@pytest.mark.parametrize("mode", MODES)
def test_a_run_resumed_twice_is_the_uninterrupted_one_bit_for_bit(tmp_path, tiny_sd_folder, mode):
    config = with_loop(run_of(mode, tiny_sd_folder, tmp_path), workers=1 if mode == "lora" else 0)
    whole = train(config, tmp_path / "whole", cache=tmp_path / "cache")
    train(config, tmp_path / "cut", until=3, cache=tmp_path / "cache")  # its last checkpoint is of step 2
    torch.rand(7)  # what others draw does not matter
    train(config, tmp_path / "cut", until=5, cache=tmp_path / "cache")
    again = train(config, tmp_path / "cut", cache=tmp_path / "cache")
    assert whole.keys() == again.keys()
    assert len(whole) > 3
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


def test_a_run_of_sdxl_resumed_is_the_uninterrupted_one(tmp_path):
    sdxl(tmp_path).save_pretrained(tmp_path / "model")
    config = run_of("lora", tmp_path / "model", tmp_path)
    whole = train(config, tmp_path / "whole", cache=tmp_path / "cache")
    train(config, tmp_path / "cut", until=3, cache=tmp_path / "cache")
    again = train(config, tmp_path / "cut", cache=tmp_path / "cache")
    assert any(".second." in name for name in whole), "of both text encoders"
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name


@pytest.mark.parametrize("mode", ["lora", "dreambooth"])
def test_accumulated_parts_are_the_whole_batch(tmp_path, tiny_sd_folder, mode):
    config = with_loop(run_of(mode, tiny_sd_folder, tmp_path), batch=4, ema=0.0)
    assert_alike(train(config, tmp_path / "a"), train(with_loop(config, accumulation=2), tmp_path / "b"))
    logs = [begun(with_loop(config, accumulation=n), tmp_path / "c") for n in (1, 2)]
    norms = [
        [report.numbers["tuned/norm"] for report in Trainer(run.stage, tmp_path / f"d{n}", cpu=True)]
        for n, run in enumerate(logs)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)  # Adam would hide a gradient that is twice as large


def test_cached_and_uncached_latents_and_texts_train_the_same(tmp_path, tiny_sd_folder):
    config = run_of("lora", tiny_sd_folder, tmp_path)
    config = replace(config, trains=replace(config.trains, text=False))
    uncached = replace(config, data=replace(config.data, cache=False))
    assert_alike(train(config, tmp_path / "a"), train(uncached, tmp_path / "b"))
    assert list((tmp_path / "a" / "cache" / "latents").rglob("*.safetensors"))
    assert list((tmp_path / "a" / "cache" / "texts").rglob("*.safetensors"))
    assert not (tmp_path / "b" / "cache").exists()


def test_two_processes_are_one_with_the_whole_batch(tmp_path, tiny_sd_folder):
    config = with_loop(run_of("lora", tiny_sd_folder, tmp_path), batch=4)
    alone = train(config, tmp_path / "alone")
    mp.spawn(_one_of_two, args=(config, tmp_path), nprocs=2)
    assert_alike(alone, torch.load(tmp_path / "together.pt"))


def _one_of_two(rank: int, config, folder: Path) -> None:
    with two_processes(rank):
        tensors = train(config, folder / "pair")
        if rank == 0:
            torch.save(tensors, folder / "together.pt")


def test_only_what_is_trained_changes_and_is_kept(tmp_path, tiny_sd_folder):
    run = begun(run_of("lora", tiny_sd_folder, tmp_path), tmp_path / "run")
    before = {name: value.clone() for name, value in run.prepared.module.state_dict().items()}
    for _ in Trainer(run.stage, tmp_path / "run", cpu=True):
        pass
    trained = run.prepared.trained
    assert all(name.endswith((".down", ".up", ".magnitude")) for name in trained)
    for name, value in run.prepared.module.state_dict().items():
        if name not in trained:
            assert torch.equal(value, before[name]), name
    changed = [name for name in trained if not torch.equal(trained[name], before[name])]
    assert len(changed) == len(trained)


def test_one_batch_is_learned_by_heart(tmp_path, tiny_sd_folder):
    """A fixed batch, the same noise each time: the loss falls twentyfold."""
    config = run_of("full", tiny_sd_folder, tmp_path)
    run = begun(config, tmp_path / "run")
    rows = [run.stage.example(index) for index in range(2)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    optimizer = torch.optim.AdamW(run.prepared.trained.values(), lr=2e-3, weight_decay=0.0)
    losses = []
    for step in range(150):
        loss, _ = run.prepared.module(batch, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 20


def test_dreambooths_loss_is_the_sum_of_its_two_means(tmp_path, tiny_sd_folder):
    config = run_of("dreambooth", tiny_sd_folder, tmp_path)
    config = replace(config, prior=replace(config.prior, weight=0.3))
    run = begun(config, tmp_path / "run")
    rows = [run.stage.example(index) for index in range(4)]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    module = run.prepared.module
    loss, _ = module(batch, 0)
    own, prior = module.losses(batch).view(2, 2).unbind(1)
    torch.testing.assert_close(loss, own.mean() + 0.3 * prior.mean())
    assert ["class-" in run.stage.name_of(index) for index in range(4)] == [False, True, False, True]


def test_a_changed_run_file_or_picture_is_refused_in_the_same_folder(tmp_path, tiny_sd_folder):
    config = run_of("lora", tiny_sd_folder, tmp_path)
    train(config, tmp_path / "run", until=3)
    with pytest.raises(ValueError, match="was made by another run file"):
        train(replace(config, seed=1), tmp_path / "run")
    longer = with_loop(config, steps=8, optimizer=replace(config.loop.optimizer, rate=1e-4))
    train(longer, tmp_path / "run")  # but this goes on
    (tmp_path / "pictures" / "0.txt").write_text("another caption")
    with pytest.raises(ValueError, match="was made by another run file"):
        train(longer, tmp_path / "run")


def test_a_loss_that_is_no_number_names_its_step_and_pictures_and_keeps_the_last_checkpoint(tmp_path, tiny_sd_folder):
    config = with_loop(run_of("full", tiny_sd_folder, tmp_path), checkpoint_every=2, steps=5)
    run = begun(config, tmp_path / "run")
    calls = []

    def poison(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        calls.append(module)
        return output * float("nan") if len(calls) == 4 else output

    run.stage.module.unet.conv_out.register_forward_hook(poison)
    names = {run.stage.name_of(index) for index in (6, 7)}
    with pytest.raises(ValueError, match="infinite or NaN in step 4, whose examples are") as caught:
        for _ in Trainer(run.stage, tmp_path / "run", cpu=True):
            pass
    assert all(name in str(caught.value) for name in names)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_learning_by_heart_is_noticed_and_only_then():
    falling, rising = [1.0, 0.9, 0.8, 0.7, 0.6], [0.5, 0.6, 0.7, 0.8, 0.9]
    watch = Overfitting()
    assert [watch.sees({"trained": a, "held out": b}) for a, b in zip(falling, rising, strict=True)][3:] == [True, True]
    watch = Overfitting()
    assert not any(watch.sees({"trained": a, "held out": a}) for a in falling)
    assert not any(watch.sees({"trained": a}) for a in falling)


def test_a_judge_knows_the_measures_of_the_run_it_goes_on_with(tmp_path, caplog):
    log = tmp_path / "log.jsonl"
    lines = [{"step": i, "trained": 1 - i / 10, "held out": 1 + i / 10} for i in range(4)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level("INFO", "ldm.training"):
        assert Judge(log, 2, stops=True)({"trained": 0.5, "held out": 2.0})
        assert not Judge(log, 2, stops=False)({"trained": 0.5, "held out": 2.0})
        assert not Judge(log, 1, stops=True)({"trained": 0.5, "held out": 2.0})  # what is cut is not counted
    assert "by heart; so the run ends here" in caplog.text


def test_checkpointed_activations_give_the_same_gradients(tmp_path, tiny_sd_folder):
    config = run_of("lora", tiny_sd_folder, tmp_path)
    found = []
    for again in (False, True):
        run = begun(with_loop(config, checkpointing=again), tmp_path / "run")
        row = run.stage.example(0)
        loss, _ = run.prepared.module({name: value[None] for name, value in row.items()}, 0)
        loss.backward()
        found.append({name: value.grad for name, value in run.prepared.trained.items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_trackers_get_the_logs_numbers_and_missing_ones_are_named(tmp_path, tiny_sd_folder, monkeypatch):
    config = run_of("lora", tiny_sd_folder, tmp_path)
    run = begun(with_loop(config, trackers=("wandb",)), tmp_path / "run")
    with pytest.raises(ValueError, match="pip install wandb"):
        Trainer(run.stage, tmp_path / "run", cpu=True)
    sent = []

    class Tracker:
        def log(self, values, step):
            sent.append((step, sorted(values)))

        def finish(self):
            sent.append("finished")

    with Log(tmp_path / "log", "a", 0, 2, progress=False, trackers=[Tracker()]) as log:
        log.write(1, {"tuned/loss": 0.5})
    assert sent == [(1, ["tuned/loss"]), "finished"]


def test_models_that_do_not_draw_from_text_alone_are_refused(tmp_path):
    for make, reason in ((sdxl_refiner, "is SDXL's refiner"), (inpainting, "takes 9 channels")):
        make(tmp_path / make.__name__).save_pretrained(tmp_path / f"{make.__name__}-model")
        pictures(tmp_path / "pictures")
        config = config_of(tmp_path / f"{make.__name__}-model", tmp_path / "pictures")
        with pytest.raises(ValueError, match=reason):
            begun(config, tmp_path / "run")


def inpainting(folder: Path):
    return sd1(folder, in_channels=9)
