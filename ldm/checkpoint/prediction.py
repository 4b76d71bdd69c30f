"""What a U-Net predicts, as far as the names in a file and its own notes tell. Standard library only."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

SD2_BASE_STEP = "875000"  # the training step at which Stable Diffusion 2 base was published
TYPES = ("epsilon", "v_prediction", "sample")
SPELLINGS = {"eps": "epsilon", "v": "v_prediction", "v_pred": "v_prediction", "x0": "sample"}
V_TASKS = ("upscale", "unclip")  # of Stable Diffusion 2; its inpainting and depth models predict noise


@dataclass(frozen=True)
class Prediction:
    """kind: "epsilon", "v_prediction", "sample", or None where only the network itself can tell.

    zero_snr: whether its noise schedule ends without signal. reason: how this is known, in words.
    """

    kind: str | None
    zero_snr: bool
    reason: str


def prediction_of(
    names: Collection[str], metadata: Mapping[str, str], family: str, task: str, given: str | None = None
) -> Prediction:
    """From, in this order: what the caller says, markers among the names, metadata, the training step, the family.

    Raises ValueError for a given prediction type that does not exist.
    """
    zero_snr = "ztsnr" in names or metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    if given is not None:
        return Prediction(checked(given), zero_snr, "as given")
    if "v_pred" in names:
        return Prediction("v_prediction", zero_snr, "the file is marked v_pred")
    if noted := _noted(metadata):
        return Prediction(noted[0], zero_snr, noted[1])
    if family == "sd2" and task == "":
        if metadata.get("global_step") == SD2_BASE_STEP:
            return Prediction("epsilon", zero_snr, f"it was trained for {SD2_BASE_STEP} steps, as SD 2 base was")
        return Prediction(None, zero_snr, "names and shapes do not tell what a Stable Diffusion 2 predicts")
    if family == "sd2" and task in V_TASKS:
        return Prediction("v_prediction", zero_snr, "as all models of this kind")
    return Prediction("epsilon", zero_snr, "as nearly all models of this family")


def checked(given: str) -> str:
    """The prediction type as diffusers spells it: "v" is "v_prediction". Raises ValueError for none that exists."""
    kind = SPELLINGS.get(given, given)
    if kind not in TYPES:
        raise ValueError(f"prediction_type {given!r} is unknown; use one of {', '.join(TYPES)}")
    return kind


def _noted(metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """(kind, reason) from the metadata, None where they say nothing."""
    kind = metadata.get("modelspec.prediction_type", "").strip().lower().replace("-", "_")
    kind = SPELLINGS.get(kind, kind)
    if kind in TYPES:
        return kind, f"modelspec.prediction_type is {kind}"
    if re.search(r"768-v(/|$)", architecture := metadata.get("modelspec.architecture", "")):
        return "v_prediction", f"modelspec.architecture is {architecture}"
    if architecture.startswith("stable-diffusion-v2-512"):
        return "epsilon", f"modelspec.architecture is {architecture}"
    if metadata.get("ss_v_parameterization", "").lower() in ("true", "1"):
        return "v_prediction", "ss_v_parameterization is set"
    return None
