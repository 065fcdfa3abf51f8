"""Every knob of a trial, in one place: frozen dataclasses whose defaults are the `quick` profile's.

A trial is described by one `TrialConfig`. `with_settings` changes it by dotted keys, as an arm of a study or
`--set train.lr=3e-4` does; an unknown key or a value of the wrong type is an `InputError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from iar_study import parts
from iar_study.errors import InputError, nearest

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Cycle = Annotated[int, Field(ge=20)]
"""Steps of a one-cycle learning rate, which needs some to rise in."""
SIDES = {"digits": 8, "fashion-mnist": 28}
"""Pixels along the side of images that come in one size."""

SIMILAR = 12
"""Codes that `loss.smoothing_over = similar` moves a target to: the rank up to which the paper sees no difference."""


@dataclass(frozen=True)
class DataConfig:
    """Which images: `digits`, `fashion-mnist`, `folder:PATH`, `codes:PATH` for images that are encoded already, or a
    part of one's own."""

    name: str = "fashion-mnist"
    image_size: Count | None = None
    """Side in pixels that the pictures of a folder are resized and centre-cropped to (32 when None)."""


@dataclass(frozen=True)
class TokenizerConfig:
    """The VQ autoencoder and its training; one token stands for `patch` x `patch` pixels."""

    codebook_size: Annotated[int, Field(ge=2)] = 512
    code_dim: Count = 8
    channels: Count = 32
    patch: Annotated[int, Field(ge=2)] = 4
    steps: Cycle = 2000
    batch_size: Count = 32
    lr: Positive = 6e-3
    commitment: NonNegative = 0.5
    """Weight beta of the commitment loss."""
    seed: Seed = 0
    checkpoint: str | None = None
    """With `codes:PATH`: the tokenizer that made the codes, LlamaGen's .pt or a study's own .safetensors."""


@dataclass(frozen=True)
class ClassifierConfig:
    """The small classifiers of the study's own images, in whose features samples are measured by default."""

    channels: Count = 32
    steps: Cycle = 1500
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Batch normalisation needs two images."""
    lr: Positive = 4e-3
    seed: Annotated[int, Field(ge=0, lt=2**60)] = 0
    """Of a set: five classifiers, each with a seed of its own."""


@dataclass(frozen=True)
class ClusteringConfig:
    """How the codes are grouped before training; `none` keeps the original order and forms no clusters."""

    strategy: str = "none"
    n_clusters: Count = 32
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Below what scikit-learn takes."""
    within: str = "none"
    """Order of the codes inside a cluster: no loss sees it."""
    between: str = "none"
    """Order of the clusters, by their centroids: only clusters of clusters see it."""


@dataclass(frozen=True)
class ModelConfig:
    """The LlamaGen-style GPT."""

    layers: Count = 4
    heads: Count = 4
    width: Count = 64
    ffn_multiple: Count = 32
    """The feed-forward width int(2/3 * 4 * width) is rounded up to a multiple of this (LlamaGen: 256)."""
    dropout: Share = 0.0
    """On tokens, residuals and feed-forward outputs (LlamaGen: 0.1)."""
    class_dropout: Share = 0.1
    """Share of training images whose class is replaced by "no class", for classifier-free guidance."""
    name: str = "gpt"
    """Or a generator of one's own, `FILE.py:NAME`, of these sizes."""


PRESETS = {
    "tiny": ModelConfig(layers=4, heads=4, width=64),
    "small": ModelConfig(layers=6, heads=8, width=128, dropout=0.1),
    "B": ModelConfig(layers=12, heads=12, width=768, ffn_multiple=256, dropout=0.1),
    "L": ModelConfig(layers=24, heads=16, width=1024, ffn_multiple=256, dropout=0.1),
    "XL": ModelConfig(layers=36, heads=20, width=1280, ffn_multiple=256, dropout=0.1),
    "XXL": ModelConfig(layers=48, heads=24, width=1536, ffn_multiple=256, dropout=0.1),
    "3B": ModelConfig(layers=24, heads=32, width=3200, ffn_multiple=256, dropout=0.1),
}
"""Sizes by name: `tiny` is the one of the profiles `quick` and `full`; then a larger one, and LlamaGen's."""


@dataclass(frozen=True)
class LossConfig:
    """L = token_weight * L_TCE + cluster_weight * L_CCE; what follows these two are variants of it."""

    cluster_weight: NonNegative = 0.0
    """The paper's lambda; 0 is the baseline's loss."""
    token_weight: NonNegative = 1.0
    """0 leaves the cluster loss alone."""
    schedule: Literal["constant", "linear", "cosine", "step"] = "constant"
    """How the weight of the cluster loss goes from `first_weight`, in the first step, to `cluster_weight`, in the last:
    not at all, in a line, in half a wave, or by a jump half-way."""
    first_weight: NonNegative = 0.0
    smoothing: Share = 0.0
    """Share of every target that L_TCE moves to other codes (label smoothing); what is measured has none of it."""
    smoothing_over: Literal["all", "cluster", "similar"] = "all"
    """To which codes: all, those of the target's own cluster, or the 12 most similar ones, by their cosine."""
    coarse_weight: NonNegative = 0.0
    """Weight of one more cluster loss, over clusters of clusters."""
    coarse_clusters: Count = 4
    """How many of these; each is made of equally many clusters that follow each other in the order `between`."""
    name: str = "cluster"
    """Or a loss of one's own, `FILE.py:NAME`, which gets the weight of each step and reads nothing else of this."""


@dataclass(frozen=True)
class TrainConfig:
    """AdamW with linear warm-up, then the named decay of the learning rate."""

    steps: Count = 1000
    batch_size: Count = 32
    micro_batch: Count | None = None
    """Images that go through the model at once (None: all of a batch). Dropout is drawn for each such part by itself,
    so a training is the same on any number of processes, which share the parts of a batch out."""
    lr: Positive = 5e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    decay: Literal["cosine", "constant"] = "cosine"
    beta1: Share = 0.9
    beta2: Share = 0.95
    weight_decay: NonNegative = 0.05
    """On matrices only."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    ema: Share = 0.99
    """Decay of the moving average of the weights, which is what is evaluated and sampled from; 0 is none."""
    kept: Count = 4
    """Times that the weights are kept to be measured, at the ends of equal parts of the training; the last is its
    end."""
    log_every: Count = 25
    checkpoint_every: Count = 200
    noise: Seed = 0
    """Which draw of a seed's order of images, dropout and dropped classes; its initial weights are the same in all."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured on held-out images and on samples, the same for every arm of a study."""

    images: Count = 2000
    """Held-out images (the first ones of the test split) that the likelihoods are measured on, whenever weights are
    kept."""
    clusters: Count = 32
    """Every arm's predictions are judged by these balanced clusters, whichever it trained with."""
    extractor: str = "set"
    """Whose features samples are measured in: set, all evaluators of the data set; inception (or inception:FILE, its
    weights), dinov2, or a part of one's own."""
    samples: Annotated[int, Field(ge=4)] = 2000
    """Precision and recall need four: a sample and its three nearest."""
    sampled_times: Count | None = None
    """Of the times that weights are kept, at how many samples are drawn and measured: a divisor of `train.kept` (None:
    all)."""
    guidance: NonNegative = 2.0
    """Scale s of classifier-free guidance: uncond + s * (cond - uncond); 1 is none."""
    temperature: Positive = 1.0
    noise: Seed = 0
    """Which draw of a seed's samples."""
    classes: Literal["in turn", "random"] = "in turn"
    """Of samples: as many of each class, or drawn, as LlamaGen has them."""
    reference: str | None = None
    """With `codes:PATH`: pictures that samples are measured against, a folder or an .npz of ADM's evaluator; by None
    nothing is measured of samples. Images have their own held-out ones."""
    image_size: Count | None = None
    """With a reference: side in pixels that decoded samples are brought to (None: as they are)."""
    metrics: str = ""
    """Of samples, beside the built-in ones: parts of one's own, `FILE.py:NAME FILE.py:NAME ...`."""


@dataclass(frozen=True)
class ComputeConfig:
    """How it is computed. Part of a trial's identity, so two precisions are never compared with each other."""

    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the products in training; weights, sums and evaluation stay in float32."""
    compile: bool = False
    threads: Count = 1
    """CPU threads of one trial: with one, the bits do not depend on the machine's number of cores."""


@dataclass(frozen=True)
class ParallelConfig:
    """How one training is spread over the processes that `torchrun` starts: it changes the result by rounding alone."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Every process holds the model, or a share of its weights, gradients and moments."""
    activation_checkpointing: bool = False
    """Compute the inside of a block again in the backward pass in place of keeping it."""


OF_TRAINING = ("model", "loss", "train", "compute", "seed")
"""Sections that tell trainings apart. All others act through the content of products, on what is measured alone, or not
beyond rounding."""

NO_MATTER = ("train.kept", "train.log_every", "train.checkpoint_every")
"""Settings that change no weight: how often a training keeps them, tells of itself, and saves itself."""

PARTS = {
    "data.name": "data",
    "clustering.strategy": "clustering",
    "clustering.within": "order",
    "clustering.between": "order",
    "model.name": "generator",
    "loss.name": "loss",
    "evaluation.extractor": "extractor",
    "evaluation.metrics": "metric",
}
"""Setting -> the kind of part that it names."""

VARIANTS = {f"loss.{f.name}": f.default for f in fields(LossConfig) if f.name != "cluster_weight"}
VARIANTS |= {"model.name": "gpt", "train.noise": 0, "evaluation.noise": 0, "evaluation.metrics": ""}
VARIANTS |= {"evaluation.classes": "in turn", "evaluation.image_size": None}
"""Settings that tell trials apart only where they are not these: with them, all is as before there were any."""


@dataclass(frozen=True)
class TrialConfig:
    """All that decides a trial's result, beside the content of its images."""

    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    seed: Seed = 0

    @property
    def sampled_times(self) -> int:
        """How many times samples are drawn, in equal parts of the training."""
        return self.evaluation.sampled_times or self.train.kept


def preset(name: str) -> ModelConfig:
    """Return a model size by name; raise `InputError` that names the nearest one otherwise."""
    if name not in PRESETS:
        raise InputError(f"unknown model {name!r}; {nearest(name, list(PRESETS))}")
    return PRESETS[name]


def is_encoded(config: DataConfig) -> bool:
    """Whether the data are images that are encoded already: `codes:PATH`."""
    kind, _, path = config.name.partition(":")
    return kind == "codes" and path != ""


def side_of(config: DataConfig) -> int | None:
    """Return the pixels along the side of the images, which are not looked at; None where only these can tell.

    Raises `InputError` for an unknown name, or another size than the images have.
    """
    kind = config.name.partition(":")[0]
    if native := SIDES.get(config.name):
        if config.image_size not in (None, native):
            raise InputError(
                f"data.image_size = {config.image_size}, but {config.name} is {native}x{native}; "
                f"leave image_size out, or use folder:PATH to resize images"
            )
        return native
    parts.check("data", config.name)
    return config.image_size or (32 if kind == "folder" else None)


def check_patches(side: int, patch: int) -> None:
    """Raise `InputError` for images that are no grid of two or more patches a side."""
    if side % patch:
        raise InputError(
            f"images of {side} x {side} pixels do not divide into patches of {patch}: "
            f"choose another tokenizer.patch or data.image_size"
        )
    if side // patch < 2:
        raise InputError(
            f"images of {side} x {side} pixels are a single patch of {patch}: "
            f"nothing is left to predict; choose a smaller tokenizer.patch"
        )


def check_shape(config: ModelConfig) -> None:
    """Raise `InputError` for a width that its heads cannot share."""
    if config.width % (4 * config.heads):
        raise InputError(
            f"model.width = {config.width} does not fit model.heads = {config.heads}: "
            f"2-D rotary embedding needs a head width that is a multiple of 4"
        )


def check_loss(config: LossConfig, n_clusters: int, n_codes: int) -> None:
    """Raise `InputError` for a variant of the loss that these clusters and codes have no room for."""
    if config.coarse_weight and n_clusters % config.coarse_clusters:
        raise InputError(
            f"clusters of clusters: loss.coarse_clusters = {config.coarse_clusters} does not divide the number of "
            f"clusters, {n_clusters}"
        )
    if config.smoothing and config.smoothing_over == "cluster" and n_clusters == 1:
        raise InputError("loss.smoothing_over = cluster needs more than one cluster; over a single one it is all")
    if config.smoothing and config.smoothing_over == "similar" and n_codes <= SIMILAR:
        raise InputError(f"loss.smoothing_over = similar needs more than {SIMILAR} codes, there are {n_codes}")


def check_parallel(config: TrialConfig, processes: int) -> None:
    """Raise `InputError` unless `processes` can share the parts of a batch out evenly at this precision."""
    batch, part = config.train.batch_size, config.train.micro_batch or config.train.batch_size
    if batch % part:
        raise InputError(f"train.micro_batch = {part} does not divide train.batch_size = {batch}")
    if batch // part % processes:
        raise InputError(
            f"{processes} processes cannot share the {batch // part} parts of a batch out evenly: "
            f"train.batch_size = {batch}, train.micro_batch = {part}; choose a smaller train.micro_batch"
        )
    if config.compute.precision == "float16" and config.parallel.strategy == "fsdp":
        raise InputError("float16 scales the loss, which sharded gradients do not support; choose bfloat16")


def flatten(config: TrialConfig) -> dict[str, Any]:
    """Return the config as one level of dotted keys.

    >>> flatten(TrialConfig())["train.lr"]
    0.005
    """
    flat: dict[str, Any] = {}
    for section in fields(config):
        value = getattr(config, section.name)
        if section.name == "seed":
            flat["seed"] = value
        else:
            flat |= {f"{section.name}.{key}": item for key, item in vars(value).items()}
    return flat


def training_identity(config: TrialConfig) -> dict[str, Any]:
    """Return the dotted keys that tell a training from another one on the same codes and clusters."""
    return _identity(config, lambda key: key.partition(".")[0] in OF_TRAINING and key not in NO_MATTER)


def measuring_identity(config: TrialConfig) -> dict[str, Any]:
    """Return the dotted keys that tell what is measured of a training; a reference goes by its content."""
    told = ("evaluation.", "train.kept")
    return _identity(config, lambda key: key.startswith(told) and key != "evaluation.reference")


def _identity(config: TrialConfig, tells: Callable[[str], bool]) -> dict[str, Any]:
    told = {key: value for key, value in without_defaults(flatten(config)).items() if tells(key)}
    return {key: part_identity(key, value) for key, value in told.items()}


def times_of(steps: int, times: int) -> tuple[int, ...]:
    """Return the ends of so many equal parts of a training.

    >>> times_of(1000, 4), times_of(3, 4)
    ((250, 500, 750, 1000), (1, 2, 3))
    """
    return tuple(dict.fromkeys(max(steps * k // times, 1) for k in range(1, times + 1)))


def part_identity(key: str, value: Any) -> Any:
    """Return the value of a setting as it stands in names of results: parts do not go by where their files are."""
    return " ".join(parts.identity(PARTS[key], each) for each in _names(key, value)) if key in PARTS else value


def parts_of(config: TrialConfig) -> list[tuple[str, str]]:
    """Return (kind, name) of every part that a trial's settings name."""
    flat, given = flatten(config), config.tokenizer.checkpoint or ""
    named = [(kind, name) for key, kind in PARTS.items() for name in _names(key, flat[key])]
    return [*named, *([("tokenizer", given)] if ".py:" in given else [])]  # any other is a path


def _names(key: str, value: str) -> list[str]:
    """Return the parts that a setting names: of metrics any number, of all else one, whose path may have spaces."""
    return value.split() if key == "evaluation.metrics" else [value]


def without_defaults(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted keys without those of `VARIANTS` that are as they would be without them."""
    return {key: value for key, value in flat.items() if key not in VARIANTS or value != VARIANTS[key]}


def with_settings(config: TrialConfig, settings: Mapping[str, Any]) -> TrialConfig:
    """Return `config` changed by dotted keys; text values are parsed to the field's type.

    The key `model` takes a size by its name, all its values at once. Raises `InputError` for an unknown key (naming the
    nearest known one) or a value that does not fit.

    >>> with_settings(TrialConfig(), {"train.lr": "3e-4"}).train.lr
    0.0003
    """
    known = list(flatten(config))
    optional = [key for key, value in flatten(TrialConfig()).items() if value is None]
    values = asdict(config)
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if key == "model":
            values["model"] = asdict(preset(value)) | {"name": values["model"]["name"]}  # sizes are any generator's
        elif key not in known:
            raise InputError(f"unknown setting {key!r}; {nearest(key, known)}")
        elif name:
            values[section][name] = None if value in ("none", "None") and key in optional else value
        else:
            values[section] = value
    return from_dict(values)


def from_dict(values: Mapping[str, Any]) -> TrialConfig:
    """Return the validated config of nested `values` (as `dataclasses.asdict` gives them)."""
    try:
        return _adapter().validate_python(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in error.errors()]
        raise InputError(f"setting does not fit: {'; '.join(problems)}") from error


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[TrialConfig]:
    """Build what validates once: it takes longer than all else in `iar-study list`."""
    return TypeAdapter(TrialConfig)
