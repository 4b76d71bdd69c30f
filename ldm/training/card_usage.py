"""How to use what a run leaves: the part of a model card with commands for this program and others."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from configs.finetuning import FineTuneConfig, Mode


@dataclass(frozen=True)
class _Usage:
    """What examples are made of. base: "" for the embedded model. alone: whether there is a single file."""

    config: FineTuneConfig
    base: str
    xl: bool
    published: bool
    alone: bool

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def prompt(self) -> str:
        """The first of the validation prompts, or one with the word that was learned."""
        word = self.config.inversion.word if self.config.mode == "inversion" else self.config.data.trigger
        return next(iter(self.config.validation.prompts), f"a picture of {word or 'a cat'}")

    @property
    def quoted(self) -> str:
        return json.dumps(self.prompt, ensure_ascii=False)

    def command(self, *options: str) -> str:
        """`ldm` with the base model, if it has to be named."""
        base = ("-m", self.base) if self.base else ()
        return shlex.join(["ldm", self.prompt, *base, *options])


def usage(config: FineTuneConfig, base: str, *, xl: bool, published: bool, files: tuple[str, ...]) -> Iterator[str]:
    """Lines of Markdown. base: the base model as commands name it, "" for the embedded one."""
    given = _Usage(config, base, xl, published, f"{config.name}.safetensors" in files)
    yield from WAYS[config.mode](given)


def _lora(given: _Usage) -> Iterator[str]:
    name = given.name
    yield from _here(given.command("--lora", f"{name}.safetensors"), f'pipe.load_lora("{name}.safetensors")', given)
    yield from _diffusers(f'pipe.load_lora_weights("{name}-diffusers.safetensors")', given)
    if given.published:
        yield f"\nIn A1111, put `{name}.safetensors` into `models/Lora` and write `<lora:{name}:1>` into the prompt; in"
        yield "ComfyUI, into `models/loras`, for the node *Load LoRA*."
        if given.config.lora.dora:
            yield "This one is a DoRA: the norms that A1111 and ComfyUI divide by are not those it was trained with, so"
            yield "that they draw something else, or only nearly the same."


def _inversion(given: _Usage) -> Iterator[str]:
    name, word = given.name, given.config.inversion.word
    file, token = f"{name}.safetensors", json.dumps(word, ensure_ascii=False)
    yield from _here(
        given.command("--embedding", f"{file}:{word}"), f'pipe.load_textual_inversion("{file}", {token})', given
    )
    if given.xl:
        yield from _diffusers(
            f'vectors = safetensors.torch.load_file("{file}")\n'
            f'pipe.load_textual_inversion(vectors["clip_l"], {token}, text_encoder=pipe.text_encoder, '
            "tokenizer=pipe.tokenizer)\n"
            f'pipe.load_textual_inversion(vectors["clip_g"], {token}, text_encoder=pipe.text_encoder_2, '
            "tokenizer=pipe.tokenizer_2)",
            given,
            "import safetensors.torch",
        )
    else:
        yield from _diffusers(f'pipe.load_textual_inversion("{file}", {token})', given)
    if given.published:
        yield f"\nIn A1111, put `{file}` into `embeddings` and write `{name}` into prompts, where the file's name is"
        yield f"the word; in ComfyUI, into `models/embeddings`, and write `embedding:{name}`."


def _full(given: _Usage) -> Iterator[str]:
    name = given.name
    yield from _blocks(
        shlex.join(["ldm", given.prompt, "-m", name]),
        "from diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{name}")\npipe({given.quoted}).images[0]',
    )
    if given.published:
        made = "" if given.alone else f", which `ldm convert {name} {name}.safetensors` makes,"
        yield f"\nIn A1111, put `{name}.safetensors`{made} into `models/Stable-diffusion`; in ComfyUI, into"
        yield "`models/checkpoints`."


def _controlnet(given: _Usage) -> Iterator[str]:
    name, xl = given.name, "XL" if given.xl else ""
    python = "from PIL import Image\n\nfrom pipelines import TextToImagePipeline\n\n"
    base = f"{_argument(given.base)}, " if given.base else ""
    python += f'pipe = TextToImagePipeline.from_pretrained({base}controlnet="{name}")\n'
    python += f'pipe({given.quoted}, control_image=Image.open("hint.png")).images[0]'
    theirs = f"from diffusers import ControlNetModel, StableDiffusion{xl}ControlNetPipeline\nfrom PIL import Image\n\n"
    theirs += f'controlnet = ControlNetModel.from_pretrained("{name}")\n'
    theirs += f"pipe = StableDiffusion{xl}ControlNetPipeline.from_pretrained({_base(given)}, controlnet=controlnet)\n"
    theirs += f'pipe({given.quoted}, image=Image.open("hint.png")).images[0]'
    yield from _blocks(given.command("--controlnet", name, "--control-image", "hint.png"), python, theirs)
    if given.published and given.alone:
        yield f"\nIn ComfyUI, put `{name}.safetensors` into `models/controlnet`; in A1111, with its ControlNet"
        yield "extension, into `models/ControlNet`."


def _autoencoder(given: _Usage) -> Iterator[str]:
    name = given.name
    theirs = (
        f'from diffusers import AutoencoderKL, DiffusionPipeline\n\nvae = AutoencoderKL.from_pretrained("{name}")\n'
    )
    theirs += f"pipe = DiffusionPipeline.from_pretrained({_base(given)}, vae=vae)\npipe({given.quoted}).images[0]"
    yield from _blocks(given.command("--vae", name), theirs)
    if given.published and given.alone:
        yield f"\nIn A1111, put `{name}.safetensors` into `models/VAE`; in ComfyUI, into `models/vae`."


def _here(command: str, load: str, given: _Usage) -> Iterator[str]:
    """This program, from the command line and from Python."""
    python = "from pipelines import TextToImagePipeline\n\n"
    python += (
        f"pipe = TextToImagePipeline.from_pretrained({_argument(given.base)})\n{load}\npipe({given.quoted}).images[0]"
    )
    yield from _blocks(command, python)


def _diffusers(load: str, given: _Usage, imports: str = "") -> Iterator[str]:
    first = f"{imports}\nfrom diffusers" if imports else "from diffusers"
    python = f"{first} import DiffusionPipeline\n\npipe = DiffusionPipeline.from_pretrained({_base(given)})\n"
    yield from _blocks("", f"{python}{load}\npipe({given.quoted}).images[0]")


def _blocks(command: str, *python: str) -> Iterator[str]:
    if command:
        yield f"\n```sh\n{command}\n```"
    yield from (f"\n```python\n{code}\n```" for code in python)


def _argument(base: str) -> str:
    return json.dumps(base) if base else ""


def _base(given: _Usage) -> str:
    """As diffusers is told."""
    return json.dumps(given.base or "path/to/the/embedded/model")


WAYS: dict[Mode, Callable[[_Usage], Iterator[str]]] = {
    "full": _full,
    "lora": _lora,
    "inversion": _inversion,
    "controlnet": _controlnet,
    "autoencoder": _autoencoder,
}
