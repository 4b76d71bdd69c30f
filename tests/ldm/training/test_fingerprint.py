"""Which changes of a run file make another stage, and which a stage goes on with."""

from dataclasses import replace
from typing import Any

import pytest

from configs.training import STAGES, DenoiserStage, RunConfig
from ldm.training.fingerprint import USES, fingerprint, finished, mark

Path = tuple[str, ...]


def changed(value: Any, path: Path, new: Any) -> Any:
    """The dataclass with another value at a path of fields."""
    name, *rest = path
    return replace(value, **{name: changed(getattr(value, name), tuple(rest), new) if rest else new})


def moved(run: RunConfig, path: str, new: Any) -> set[str]:
    """The stages whose fingerprint a change moves."""
    other = changed(run, tuple(path.split(".")), new)
    assert other != run
    return {stage for stage in STAGES if fingerprint(run, stage) != fingerprint(other, stage)}


@pytest.mark.parametrize(
    ("path", "new", "stages"),
    [
        ("seed", 1, set(STAGES)),
        ("size", 64, set(STAGES)),
        ("world.nouns", ("cat",), set(STAGES)),
        ("classifier.channels", (8, 24), {"classifier", "autoencoder", "denoiser"}),
        ("autoencoder.kl", 1e-5, {"autoencoder", "denoiser"}),
        ("text.negatives", 2, {"text", "denoiser"}),
        ("text.loop.batch", 8, {"text", "denoiser"}),
        ("denoiser.model.mid", "resnet", {"denoiser"}),
        ("denoiser.loop.optimizer.kind", "muon", {"denoiser"}),
    ],
)
def test_a_change_moves_the_stages_that_depend_on_it(run: RunConfig, path: str, new: Any, stages: set[str]) -> None:
    assert moved(run, path, new) == stages


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("name", "other"),
        *((f"classifier.loop.{name}", 40) for name in ("steps", "checkpoint_every", "sample_every", "log_every")),
        *((f"text.loop.{name}", 4) for name in ("accumulation", "keep", "workers")),
        ("denoiser.loop.precision", "bf16"),
        ("denoiser.loop.optimizer.rate", 0.5),
        ("denoiser.text_rate", 0.5),
        ("denoiser.compile", True),
    ],
)
def test_a_stage_goes_on_with_other_lengths_and_rates(run: RunConfig, path: str, new: Any) -> None:
    assert moved(run, path, new) == set()


def test_defaults_count_for_nothing_wherever_they_are_written(run: RunConfig) -> None:
    """So that old folders stay valid when a key is added: a table of defaults is as good as none."""
    assert fingerprint(RunConfig("a"), "denoiser") == fingerprint(RunConfig("b", denoiser=DenoiserStage()), "denoiser")


def test_every_stage_uses_only_earlier_ones() -> None:
    assert tuple(USES) == STAGES
    assert all(STAGES.index(used) < STAGES.index(stage) for stage in STAGES for used in USES[stage])


def test_marks_are_of_one_run_file(tmp_path: Any) -> None:
    assert finished(tmp_path, "a") == 0
    mark(tmp_path, 12, "a")
    assert finished(tmp_path, "a") == 12
    with pytest.raises(ValueError, match=f"{tmp_path} was made by another run file: .*--fresh"):
        finished(tmp_path, "b")
    (tmp_path / "finished").write_text("12\n")  # as they were before
    with pytest.warns(UserWarning, match="was begun before stages noted their run file"):
        assert finished(tmp_path, "b") == 12
