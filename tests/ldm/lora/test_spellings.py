"""Spellings of module names that few programs write."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ldm.lora.formats import read_lora
from ldm.lora.names import Names
from ldm.model import LatentDiffusion
from tests.ldm.lora.conftest import MODULES, kohya, low_rank, write

TEXT = "text_model.encoder.layers.0.self_attn.q_proj"


def peft(own: str) -> str:
    part, _, path = own.partition(".")
    return f"{part}.base_model.model.{path}"


def lycoris(own: str) -> str:
    return f"lycoris_{own.partition('.')[2].replace('.', '_')}"


def comfy(own: str) -> str:
    return own.replace("text_encoder.", "text_encoders.clip_l.transformer.")


@pytest.mark.parametrize("spell", [peft, lycoris, comfy])
def test_every_module_is_found(
    spell: Callable[[str], str], make: Callable[..., LatentDiffusion], tmp_path: Path
) -> None:
    names = Names.of(make("sd1"))
    lora = read_lora(write(tmp_path / "a.safetensors", kohya(low_rank(names, MODULES), spell)), names)
    assert (set(lora.modules), lora.foreign) == (set(MODULES), ())


def test_each_of_two_encoders_has_its_slot(make: Callable[..., LatentDiffusion]) -> None:
    names = Names.of(make("sdxl"))
    assert names.own[f"text_encoders.clip_l.transformer.{TEXT}"] == f"text_encoder.{TEXT}"
    assert names.own[f"text_encoders.clip_g.transformer.{TEXT}"] == f"text_encoder_2.{TEXT}"
    assert names.own[f"text_encoder_2.base_model.model.{TEXT}"] == f"text_encoder_2.{TEXT}"
    assert f"lycoris_{TEXT.replace('.', '_')}" not in names.own  # it does not say of which
