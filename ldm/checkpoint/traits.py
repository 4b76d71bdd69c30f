"""What can be said of weights beside a model (a LoRA, a ControlNet, a VAE ...) from names, shapes and notes alone.

Needs no torch. Of tensors only the alphas of a LoRA are read, one number each.
"""

import json
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ldm.checkpoint import infer
from ldm.checkpoint.errors import CheckpointError
from ldm.checkpoint.family import BY_WIDTH, context_width
from ldm.checkpoint.infer import Shapes
from ldm.checkpoint.infer_extras import FACTOR_XL, FOLDED, image_prompt_config
from ldm.checkpoint.kinds import NO_CONTROLNET, TINY, word_of
from ldm.checkpoint.names_compvis import vae_names
from ldm.checkpoint.names_controlnet import CONTROL, controlnet_config, controlnet_names, original_spelling
from ldm.checkpoint.recognise import VAE_PREFIXES
from ldm.checkpoint.source import Source
from ldm.lora.guess import OTHERS, text_width
from ldm.lora.layout import RANKED, kinds_of, role_of

EMBEDDING = "a textual inversion (an embedding)"
UNNAMED = ("", "emb_params", "string_to_param.*", "clip_l", "clip_g", "text_encoders_0", "text_encoders_1")
NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i"}
NETWORKS = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "diff": "whole differences"}
PREFIXES = {
    r"lora_te2_|text_encoder_2\.": "text_encoder_2",
    r"lora_te1?_|text_encoder\.|(base_model\.model\.)?text_model\.": "text_encoder",
}
MOST = 12  # different values told of
MOST_WORDS = 100  # of an embedding


@dataclass(frozen=True)
class Traits:
    """family: as in LatentDiffusion, "" where unknown. details: plain JSON. absent, foreign: tensors of a network that
    should be there, and that should not. damage: why it cannot be told more, "" if all is well.
    """

    family: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    damage: str = ""


def traits_of(kind: str, source: Source) -> Traits:
    """What there is to say about a file of this kind (`ldm.checkpoint.kinds`)."""
    shapes = {name: entry.shape for name, entry in source.entries.items()}
    try:
        return DESCRIBED[kind](source, shapes) if kind in DESCRIBED else Traits()
    except (ValueError, LookupError, ZeroDivisionError, struct.error) as error:
        detail = str(error) if isinstance(error, CheckpointError) else f"its shapes make no network ({error})"
        return Traits(damage=f"{source.path}: {detail}")


def is_embedding(shapes: Shapes) -> bool:
    """Whether these are the vectors of words under any names: few, of a width that texts have."""
    fitting = (1 <= len(shape) <= 2 and shape[-1] in BY_WIDTH for shape in shapes.values())
    return 0 < len(shapes) <= MOST_WORDS and all(fitting)


def counted(values: Iterable[Any]) -> dict[str, int]:
    """How often each value is there, the most frequent first and the rest together."""
    counts = Counter(map(str, values)).most_common()
    rest = sum(number for _, number in counts[MOST:])
    return dict(counts[:MOST]) | ({"others": rest} if rest else {})


# LoRA


def _lora(source: Source, shapes: Shapes) -> Traits:
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    foreign = []
    for key in shapes:
        module, role = role_of(key)
        if role is None:
            foreign.append(key)
        else:
            modules[module][role] = key
    first = [next((roles[role] for role in RANKED if role in roles), "") for roles in modules.values()]
    alphas = [roles["alpha"] for roles in modules.values() if "alpha" in roles]
    parts = counted(map(_part, modules))
    family = BY_WIDTH.get(text_width(source) or 0, "sdxl" if "text_encoder_2" in parts else "")
    details = {
        "network": _network(modules, shapes),
        "modules": parts,
        "rank": counted(shapes[key][0] for key in first if key and shapes[key]),
        "alpha": counted(f"{alpha:g}" for alpha in _numbers(source, alphas)),
        "looks like": "" if family else _other(shapes),
    }
    return Traits(family, {name: value for name, value in details.items() if value}, foreign=tuple(foreign))


def _part(module: str) -> str:
    return next((part for prefix, part in PREFIXES.items() if re.match(prefix, module)), "unet")


def _network(modules: Mapping[str, Mapping[str, str]], shapes: Shapes) -> str:
    """ "LoRA", or "LoRA, with convolutions, DoRA" """
    kinds = dict.fromkeys(kind for roles in modules.values() for kind in kinds_of(roles))
    names = [NETWORKS[kind] for kind in kinds]
    downs = [shapes[roles["down"]] for roles in modules.values() if "down" in roles]
    if any(len(shape) == 4 and shape[2:] != (1, 1) for shape in downs):
        names.append("with convolutions")
    return ", ".join(names + ["DoRA"] * any("dora_scale" in roles for roles in modules.values()))


def _numbers(source: Source, names: Sequence[str]) -> list[float]:
    """The values of tensors of one number each; others are left out."""
    names = [name for name in names if source.entries[name].numel == 1]
    if source.format == "torch":
        return [float(source.tensor(name)) for name in names]
    found = []
    with source.path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        for name in names:
            stream.seek(8 + length + header[name]["data_offsets"][0])
            dtype = source.entries[name].dtype
            if dtype == "BF16":
                found.append(struct.unpack("<f", b"\0\0" + stream.read(2))[0])
            elif dtype in NUMBERS:
                found.append(struct.unpack(NUMBERS[dtype], stream.read(struct.calcsize(NUMBERS[dtype])))[0])
    return found


def _other(shapes: Shapes) -> str:
    return next((model for pattern, model in OTHERS.items() if any(re.search(pattern, key) for key in shapes)), "")


# networks that steer a model


def _controlnet(source: Source, shapes: Shapes) -> Traits:
    for which, pattern in NO_CONTROLNET.items():
        if any(re.fullmatch(pattern, name) for name in shapes):
            return Traits(details={"which": f"{which}, which is not supported"})
    prefix = CONTROL if any(name.startswith(CONTROL) for name in shapes) else ""
    inner = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    own = any(name.startswith("controlnet_cond_embedding.") for name in inner)
    config = controlnet_config(original_spelling(inner) if own else inner)
    expected = {name.own if own else name.original for name in controlnet_names(config)}
    details = {"layout": _layout(own), "hint channels": config.hint_in}
    return Traits(BY_WIDTH.get(config.unet.context_dim, ""), details, *_compared(expected, inner))


def _layout(own: bool) -> str:
    return "diffusers" if own else "original"


def _compared(expected: Iterable[str], found: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    expected, found = dict.fromkeys(expected), dict.fromkeys(found)
    return tuple(name for name in expected if name not in found), tuple(name for name in found if name not in expected)


def _t2i_adapter(source: Source, shapes: Shapes) -> Traits:
    names = ("conv_in.weight", "body.0.in_conv.weight")
    first = next((shape for name, shape in shapes.items() if name.removeprefix("adapter.") in names), ())
    channels, factor = FOLDED[first[1]] if len(first) == 4 and first[1] in FOLDED else (0, 0)
    if not channels:
        return Traits(damage=f"{source.path}: its first convolution is none of a T2I-Adapter; fetch it again")
    return Traits("sdxl" if factor == FACTOR_XL else "sd1", {"hint channels": channels})


def _ip_adapter(source: Source, shapes: Shapes) -> Traits:
    config = image_prompt_config(shapes)
    lora = any("_lora." in name for name in shapes)
    details = {"which": config.kind, "image width": config.image_dim, "tokens": config.tokens, "with a LoRA": lora}
    return Traits(BY_WIDTH.get(config.context_dim, ""), {name: value for name, value in details.items() if value})


# parts of a model


def _embedding(source: Source, shapes: Shapes) -> Traits:
    """The width is that of the text: of SDXL's two encoders together."""
    width = sum({shape[-1] for shape in shapes.values() if shape})
    names = [name for name in shapes if name not in UNNAMED]
    rows = [shape[0] if len(shape) > 1 else 1 for shape in shapes.values()]
    word = word_of(source.path, source.metadata)
    words = names[:MOST] or [word + " (the name of the file)" * (word == source.path.stem)]
    return Traits(BY_WIDTH.get(width, ""), {"word": words, "vectors": max(rows), "width": width})


def _vae(source: Source, shapes: Shapes) -> Traits:
    prefix = next(p for p in VAE_PREFIXES if any(name.startswith(p) for name in shapes))
    inner = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    inner = {name: shape for name, shape in inner.items() if not name.startswith(("loss.", "model_ema."))}
    own = any(".mid_block." in name for name in inner)
    details = {"layout": _layout(own), "latent channels": infer.shape_of(inner, "decoder.conv_in.weight", 4)[1]}
    family = "sdxl" if "-xl-" in source.metadata.get("modelspec.architecture", "") else ""
    if own:
        return Traits(family, details)
    return Traits(family, details, *_compared((n.original for n in vae_names(infer.autoencoder_config(inner))), inner))


def _tiny(source: Source, shapes: Shapes) -> Traits:
    halves = [half for half in ("encoder", "decoder") if any(half in name for name in shapes)]
    alone = "encoder" if "0.weight" in shapes else "decoder"
    return Traits(details={"holds": " and ".join(halves or [alone])})


def _unet(source: Source, shapes: Shapes) -> Traits:
    return Traits(BY_WIDTH.get(context_width(shapes) or 0, ""), {"layout": "diffusers"})


def _text_encoder(source: Source, shapes: Shapes) -> Traits:
    table = next((shape for name, shape in shapes.items() if name.endswith("token_embedding.weight")), ())
    return Traits(details={"width": table[-1], "vocabulary": table[0]} if len(table) == 2 else {})


def _foreign(source: Source, shapes: Shapes) -> Traits:
    return Traits(details={"looks like": other} if (other := _other(shapes)) else {})


DESCRIBED: Mapping[str, Callable[[Source, Shapes], Traits]] = {
    "a LoRA": _lora,
    "a control-LoRA": _controlnet,
    "a ControlNet": _controlnet,
    "an IP-Adapter": _ip_adapter,
    "a T2I-Adapter": _t2i_adapter,
    EMBEDDING: _embedding,
    "a model of another family (SD 3, Flux, or another transformer)": _foreign,
    "the U-Net of a diffusers folder": _unet,
    "an autoencoder (VAE) alone": _vae,
    "a text encoder alone": _text_encoder,
    TINY: _tiny,
}
