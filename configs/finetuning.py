"""Fine-tuning of a model on one's own pictures, as values: the tables of a run file. Standard library only.

Each checks its own values: ValueError beginning with the name of the field.
"""

import re
from dataclasses import dataclass
from typing import Literal

from configs.ranges import above_zero, at_least, require, share
from configs.training import LoopConfig, OptimizerConfig

Mode = Literal["full", "lora", "inversion", "controlnet", "autoencoder"]
MODES: tuple[Mode, ...] = ("full", "lora", "inversion", "controlnet", "autoencoder")


@dataclass(frozen=True)
class TuningOptimizer(OptimizerConfig):
    """With the defaults of fine-tuning."""

    rate: float = 1e-4
    warmup: int = 50


@dataclass(frozen=True)
class TuningLoop(LoopConfig):
    """With the defaults of fine-tuning."""

    batch: int = 4
    optimizer: TuningOptimizer = TuningOptimizer()
    sample_every: int = 250


@dataclass(frozen=True)
class SourceConfig:
    """Where pictures come from: a folder, a table (.jsonl, .csv, .parquet), shards (`shards/{000..099}.tar`, or a
    pattern with *), or a dataset's hub id.

    repeats: how often an epoch meets each of its pictures. weight: of their loss.
    caption: of pictures that have none of their own.
    image_column, caption_column, hint_column: of a table or dataset, "" for the usual names.
    hints: folder with the control image of each picture, under the picture's name. licence: for the model card.
    """

    path: str
    repeats: int = 1
    weight: float = 1.0
    caption: str = ""
    image_column: str = ""
    caption_column: str = ""
    hint_column: str = ""
    hints: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        require(bool(self.path), "path", self.path, "a folder, a table, shards, or a dataset's hub id")
        at_least(1, self, "repeats")
        above_zero(self, "weight")


@dataclass(frozen=True)
class DataConfig:
    """The pictures, and how the model sees them.

    path, hints: the one source; or `sources`, several of them.
    trigger: a word that belongs into every caption; it is put in front of those without it.
    size: pixels, the side of a square whose area all pictures are scaled to; 0: the model's own.
    buckets: pictures keep roughly their shape, in batches of one shape each; else all are cut square.
    bucket_step: pixels that sides are multiples of; 0: 64, or an eighth of a size below 512.
    smallest: pixels of the shorter side below which a picture is left out. enlarge: whether pictures smaller than the
        bucket are enlarged or left out.
    crop: where a picture is cut. flip: mirror every second time.
    shuffle_tags: captions are lists of tags, shuffled each time but for the first `keep_tags`.
    caption_dropout: share of examples without their caption, which guidance needs.
    held_out: share of pictures kept for measuring, of 20 and more; they are never trained on.
    cache: latents, and texts that do not change, are encoded once and kept on disk.
    """

    path: str = ""
    hints: str = ""
    sources: tuple[SourceConfig, ...] = ()
    trigger: str = ""
    size: int = 0
    buckets: bool = True
    bucket_step: int = 0
    smallest: int = 64
    enlarge: bool = True
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    shuffle_tags: bool = False
    keep_tags: int = 1
    tag_separator: str = ","
    caption_dropout: float = 0.1
    held_out: float = 0.1
    cache: bool = True

    def __post_init__(self) -> None:
        either = bool(self.path) != bool(self.sources)
        require(either, "path", self.path, "either path or sources, one of them")
        require(bool(self.path) or not self.hints, "hints", self.hints, "the sources' own hints beside sources")
        at_least(0, self, "size", "keep_tags", "smallest", "bucket_step")
        require(bool(self.tag_separator), "tag_separator", self.tag_separator, "at least one character")
        share(self, "caption_dropout")
        require(0 <= self.held_out < 1, "held_out", self.held_out, "a share from 0 to below 1")

    @property
    def all_sources(self) -> tuple[SourceConfig, ...]:
        return self.sources or (SourceConfig(self.path, hints=self.hints),)


@dataclass(frozen=True)
class PriorConfig:
    """DreamBooth's prior preservation (Ruiz et al. 2022, 2208.12242): pictures of the class, by the model itself, are
    trained beside one's own, half of every batch.

    prompts: of the class, such as ["a dog"], and whatever else is to stay as it is; they take turns. None: no such
        pictures. path: folder of the pictures with their captions ("" for one beside the results); what is missing of
        `count` is drawn. weight: of their loss.
    """

    prompts: tuple[str, ...] = ()
    path: str = ""
    count: int = 100
    weight: float = 1.0

    def __post_init__(self) -> None:
        at_least(1, self, "count")
        at_least(0, self, "weight")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The denoiser's loss.

    prediction: what the network predicts, "" for what it was trained with.
    levels: of noise: the training steps drawn evenly, or ln sigma normal (EDM, 2206.00364) with `mean` and `std`.
    weighting: of the squared error by noise level (`ldm.training.weighting`); `gamma` of min_snr (5) and p2 (1).
    zero_terminal_snr: the noise schedule is rescaled to end in pure noise (2305.08891); not for epsilon.
    offset_noise: standard deviation of noise that is the same all over a channel, added to the noise.
    input_perturbation: further noise in the network's input alone, as a share (2301.11706).
    """

    prediction: Literal["", "epsilon", "v_prediction", "sample"] = ""
    levels: Literal["uniform", "lognormal"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    weighting: Literal["none", "min_snr", "p2", "debiased", "edm"] = "none"
    gamma: float = 0.0
    zero_terminal_snr: bool = False
    offset_noise: float = 0.0
    input_perturbation: float = 0.0

    def __post_init__(self) -> None:
        above_zero(self, "std")
        at_least(0, self, "gamma", "offset_noise", "input_perturbation")
        refused = self.zero_terminal_snr and self.prediction == "epsilon"
        require(not refused, "prediction", self.prediction, '"v_prediction" or "sample" beside zero_terminal_snr')


@dataclass(frozen=True)
class TrainsConfig:
    """Which of the model's networks are trained. text_rate: the text encoders' rate, as a factor of the U-Net's."""

    unet: bool = True
    text: bool = False
    text_rate: float = 0.1
    decoder_only: bool = True  # of the autoencoder: a changed encoder would make every denoiser's latents others

    def __post_init__(self) -> None:
        above_zero(self, "text_rate")
        require(self.unet or self.text, "unet", self.unet, "true, or text = true")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank changes (Hu et al. 2021, 2106.09685) of scale alpha / rank.

    alpha: 0 for as much as the rank. targets: kinds of layers. dora: the weights' magnitude apart (2402.09353).
    """

    rank: int = 16
    alpha: float = 0.0
    targets: tuple[Literal["attention", "feedforward", "convolutions"], ...] = ("attention",)
    dora: bool = False

    def __post_init__(self) -> None:
        at_least(1, self, "rank")
        at_least(0, self, "alpha")
        require(len(self.targets) > 0, "targets", self.targets, "at least one kind of layers")


@dataclass(frozen=True)
class InversionConfig:
    """Textual inversion (Gal et al. 2022, 2208.01618): only a new word is learned, of `vectors` token embeddings.

    word: new to the model, such as "<my-cat>". start: known words whose mean the vectors begin with.
    """

    word: str = ""
    start: str = ""
    vectors: int = 1

    def __post_init__(self) -> None:
        at_least(1, self, "vectors")


@dataclass(frozen=True)
class ControlConfig:
    """A ControlNet (Zhang et al. 2023, 2302.05543), begun as a copy of the U-Net, or from `start`, one to go on with.

    hint: "paired", pictures of one's own (`data.hints`, or a column), or "edges", found in the pictures themselves.
    """

    hint: Literal["paired", "edges"] = "paired"
    start: str = ""


@dataclass(frozen=True)
class ReconstructionConfig:
    """The autoencoder's loss: weights of its terms, each a mean over the picture.

    gradient: of L1 between differences of neighbours, on three scales. kl: summed over latents, of a trained encoder.
    """

    l1: float = 1.0
    l2: float = 0.0
    gradient: float = 0.5
    kl: float = 1e-6

    def __post_init__(self) -> None:
        at_least(0, self, "l1", "l2", "gradient", "kl")
        require(self.l1 + self.l2 > 0, "l1", self.l1, "above 0, or l2 above 0")


@dataclass(frozen=True)
class ValidationConfig:
    """What is looked at while training.

    prompts: drawn before and in the course of training, beside each other, every `loop.sample_every` steps.
    measure_every: steps between losses by noise level, on fixed examples trained on and held out; 0: never.
    stop_on_overfit: end once the held-out loss has risen for three measures while the other fell.
    """

    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 0  # 0: the model's own number, or 50
    guidance_scale: float = 0.0  # 0: the model's own
    measure_every: int = 100
    stop_on_overfit: bool = False

    def __post_init__(self) -> None:
        at_least(0, self, "seed", "steps", "guidance_scale", "measure_every")


@dataclass(frozen=True)
class ResultConfig:
    """What is written in the end. Nothing of the pictures' paths or captions is in it unless `tags` asks for counts.

    title, author, licence: for the metadata and the card. single_file: of a whole model, beside the folder.
    """

    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    title: str = ""
    author: str = ""
    licence: str = ""
    single_file: bool = False
    tags: bool = False


@dataclass(frozen=True)
class FineTuneConfig:
    """A run of fine-tuning. `model` is a folder, a file or a hub id, "" for the embedded model."""

    mode: Mode
    name: str
    data: DataConfig
    model: str = ""
    seed: int = 0
    trains: TrainsConfig = TrainsConfig()
    lora: LoraConfig = LoraConfig()
    inversion: InversionConfig = InversionConfig()
    control: ControlConfig = ControlConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    prior: PriorConfig = PriorConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    loop: TuningLoop = TuningLoop()
    validation: ValidationConfig = ValidationConfig()
    result: ResultConfig = ResultConfig()

    def __post_init__(self) -> None:
        plain = re.fullmatch(r"\w[\w.-]*", self.name) is not None
        require(plain, "name", self.name, "letters, digits and - _ . only: it becomes a folder and a file")
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 4294967295")
        word = self.mode != "inversion" or bool(self.inversion.word.strip())
        require(word, "inversion.word", self.inversion.word, 'a new word, such as "<my-cat>"')
        even = not self.prior.prompts or self.loop.batch % (2 * self.loop.accumulation) == 0
        require(even, "loop.batch", self.loop.batch, "an even number for each accumulated part: half is for the prior")
        alone = not self.prior.prompts or self.mode in ("full", "lora")
        require(alone, "prior.prompts", self.prior.prompts, 'none, but for mode = "full" and "lora"')
