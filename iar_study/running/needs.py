"""What a study would take, before anything runs: operations, GPU hours, memory, disk, and what is missing here.

Operations are counted from the shapes of the models (`generators.cost`), hours follow from a GPU's peak and an assumed
utilisation. Counted are the training of the GPTs, their evaluation on held-out images and the drawing of samples; not
counted: tokenizers, clusterings, decoding and measuring of samples, start-up.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from iar_study.config import ClusteringConfig, ParallelConfig, TrialConfig, check_patches, is_encoded, side_of
from iar_study.errors import InputError, enumerated, nearest
from iar_study.evaluation.inception import INCEPTION_URL, INSTALL, has_torch_fidelity, inception_path
from iar_study.generators import cost
from iar_study.parts import built_in
from iar_study.pipeline.workspace import Workspace
from iar_study.study.checks import asked
from iar_study.study.study import Arm, Profile, Study


@dataclass(frozen=True)
class GPU:
    """A GPU's dense peak, without sparsity, in products of half precision summed up in float32, and its memory."""

    peak_flops_per_second: float
    memory_bytes: float
    precision: str = "bfloat16"


# NVIDIA's data sheets of V100 SXM2 32 GB, A100 80 GB, L40S, H100 SXM and H200 SXM, HGX B200, and the white paper of the
# Ada architecture for the RTX 4090. Where they give peaks with sparsity, as from H100 on, half of it is the dense peak.
GPUS = {
    "V100": GPU(125e12, 32e9, "float16"),
    "A100": GPU(312e12, 80e9),
    "RTX4090": GPU(165e12, 24e9),
    "L40S": GPU(362e12, 48e9),
    "H100": GPU(989e12, 80e9),
    "H200": GPU(989e12, 141e9),
    "B200": GPU(2250e12, 180e9),
}

IMAGENET = {"train": 1_281_167, "test": 50_000}
"""Images that are assumed while a data set is not there; train in ten augmentations, of 1,000 classes."""

CHECKPOINTS = 3
"""Checkpoints on the disk at once, see `training.checkpoint`: two are kept while the next is written."""

UNITS = {"days": 24.0, "h": 1.0, "min": 1 / 60, "s": 1 / 3600}
"""Hours of each."""

PICTURES = 80
"""Samples that a trial keeps as pictures, see `pipeline.attempt`; of the others it keeps tokens at most."""


@dataclass(frozen=True)
class Data:
    """The images of a plan, as found or assumed."""

    name: str
    train_images: int
    augmentations: int
    test_images: int
    classes: int
    image_pixels: int
    """Side of an image."""
    channels: int
    tokens_per_image: int
    codes_bytes: int
    codes_bytes_missing: int
    """Of these, what is not on the disk yet."""
    assumed: bool
    """Whether the numbers are ImageNet's, because the data are not here."""


@dataclass(frozen=True)
class Work:
    """What is computed, by one trial or by all."""

    tokens: int
    """That are trained on, repetitions counted."""
    training_flops: int
    evaluation_flops: int
    sampling_flops: int
    gpu_hours: float
    wall_hours: float


@dataclass(frozen=True)
class Kind:
    """Trials that cost the same, with what each of them takes."""

    arms: tuple[str, ...]
    trials: int
    layers: int
    heads: int
    width: int
    parameters: int
    each: Work
    tokens_per_second_per_gpu: float
    """In training, at the assumed utilisation."""
    ddp_state_bytes_per_gpu: int
    """Weights, gradients, moments and moving average; activations come on top."""
    fsdp_state_bytes_per_gpu: int
    checkpoint_bytes: int
    kept_bytes: int
    """Weights and samples that a finished trial leaves."""


@dataclass(frozen=True)
class Disk:
    """Bytes on the disk."""

    codes_bytes: int
    """That are still to be written."""
    checkpoints_bytes: int
    """Of the trial that runs."""
    kept_bytes: int
    needed_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Need:
    """Something that the study needs on this machine."""

    what: str
    met: bool
    found: str
    remedy: str = ""
    """What to do where it is not met."""


@dataclass(frozen=True)
class Needs:
    """What a study at a profile takes; its fields, units in their names, are what `--json` prints."""

    study: str
    profile: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    trials: int
    """Arms with the same settings are one trial."""
    steps: int
    batch_size: int
    epochs: float
    device: str
    precision: str
    data: Data
    kinds: tuple[Kind, ...]
    total: Work
    gpu: str
    gpus: int
    peak_flops_per_second: float
    memory_bytes_per_gpu: float
    assumed_utilisation: float
    disk: Disk
    needs: tuple[Need, ...]

    def as_json(self) -> str:
        """Return the plan as indented JSON."""
        return json.dumps(asdict(self), indent=2)


def find_needs(
    study: Study,
    profile: Profile,
    workspace: Workspace,
    *,
    seeds: Sequence[int] | None = None,
    arms: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    gpu: str,
    gpus: int,
    utilisation: float,
) -> Needs:
    """Plan the trials that `runner.run_study` would run with the same study, profile, seeds, arms and settings.

    Parameters
    ----------
    gpu : a name of `GPUS`.
    gpus : how many share a trial; trials run one after another.
    utilisation : share of the GPU's peak that is assumed to be reached.

    Raises
    ------
    InputError : an unknown GPU or setting, data that cannot be divided into tokens.
    """
    if gpu not in GPUS:
        raise InputError(f"unknown GPU {gpu!r}; {nearest(gpu, list(GPUS))}")
    if gpus < 1 or not 0 < utilisation <= 1:
        raise InputError(f"--gpus {gpus} must be 1 or more, --utilisation {utilisation:g} above 0 and at most 1")
    if study.kind == "near-codes":
        raise InputError(f"study {study.name!r} trains no GPT, so there is nothing to plan: run it, in minutes")
    base, configs = asked(study, profile, arms, seeds, settings)
    if study.kind == "sampling":  # ways to sample from one training are one training
        configs = [(arm, seed, replace(config, evaluation=base.evaluation)) for arm, seed, config in configs]

    data, needs = look_for_data(base)
    needs += _measuring_needs(base)
    needs += _codebook_needs(study, configs, base)
    trials: dict[TrialConfig, tuple[TrialConfig, list[str]]] = {}
    for arm, _, config in configs:
        trials.setdefault(same_trial(config), (config, []))[1].append(arm.name)
    costs: dict[Kind, list[list[str]]] = {}
    for config, names in trials.values():
        costs.setdefault(_cost(config, data, GPUS[gpu], gpus, utilisation), []).append(names)
    kinds = [
        replace(kind, arms=tuple(dict.fromkeys(chain(*names))), trials=len(names)) for kind, names in costs.items()
    ]

    disk = _disk_use(kinds, data, workspace)
    needs += _gpu_needs(base, kinds, gpu, gpus)
    needs.append(
        Need(
            "disk",
            disk.free_bytes >= disk.needed_bytes,
            f"{short(disk.needed_bytes, 'B')} needed, {short(disk.free_bytes, 'B')} free at {workspace.root}",
            "free some, or keep runs/ on a larger disk",
        )
    )
    return Needs(
        study=study.name,
        profile=profile.name,
        arms=tuple(dict.fromkeys(arm.name for arm, _, _ in configs)),
        seeds=tuple(dict.fromkeys(seed for _, seed, _ in configs)),
        trials=len(trials),
        steps=base.train.steps,
        batch_size=base.train.batch_size,
        epochs=base.train.steps * base.train.batch_size / data.train_images,
        device=base.compute.device,
        precision=base.compute.precision,
        data=data,
        kinds=tuple(kinds),
        total=_total(kinds),
        gpu=gpu,
        gpus=gpus,
        peak_flops_per_second=GPUS[gpu].peak_flops_per_second,
        memory_bytes_per_gpu=GPUS[gpu].memory_bytes,
        assumed_utilisation=utilisation,
        disk=disk,
        needs=tuple(needs),
    )


def same_trial(config: TrialConfig) -> TrialConfig:
    """Return the config without what cannot matter: two arms that then are equal are one trial, as in the runner."""
    if config.clustering.strategy == "none":
        config = replace(config, clustering=ClusteringConfig())
    return replace(config, parallel=ParallelConfig())


def _cost(config: TrialConfig, data: Data, gpu: GPU, gpus: int, utilisation: float) -> Kind:
    """Return what one trial takes, not yet knowing of others that take the same."""
    model, train, evaluation, tokens = config.model, config.train, config.evaluation, data.tokens_per_image
    size, images = config.tokenizer.codebook_size, train.steps * train.batch_size
    flops = cost.trial_flops(config, tokens, data.test_images)
    sampled = config.sampled_times * evaluation.samples
    rate = gpu.peak_flops_per_second * utilisation
    hours = sum(flops) / rate / 3600
    parameters = cost.n_parameters(model, size, data.classes)
    state = cost.state_bytes(parameters, train.ema > 0)
    pictures = min(PICTURES, evaluation.samples) * data.image_pixels**2 * data.channels
    kept = train.kept * cost.FLOAT32 * parameters + 2 * sampled * tokens + pictures
    return Kind(
        arms=(),
        trials=1,
        layers=model.layers,
        heads=model.heads,
        width=model.width,
        parameters=parameters,
        each=Work(images * tokens, *flops, hours, hours / gpus),
        tokens_per_second_per_gpu=rate * images * tokens / flops.training,
        ddp_state_bytes_per_gpu=state,
        fsdp_state_bytes_per_gpu=math.ceil(state / gpus),
        checkpoint_bytes=cost.checkpoint_bytes(parameters, train.ema > 0),
        kept_bytes=kept,
    )


def _total(kinds: Sequence[Kind]) -> Work:
    works = [(kind.trials, asdict(kind.each)) for kind in kinds]
    return Work(**{name: sum(trials * work[name] for trials, work in works) for name in works[0][1]})


def _disk_use(kinds: Sequence[Kind], data: Data, workspace: Workspace) -> Disk:
    checkpoints = CHECKPOINTS * max(kind.checkpoint_bytes for kind in kinds)
    kept = sum(kind.trials * kind.kept_bytes for kind in kinds)
    needed = data.codes_bytes_missing + checkpoints + kept
    return Disk(data.codes_bytes_missing, checkpoints, kept, needed, shutil.disk_usage(workspace.root).free)


def look_for_data(config: TrialConfig) -> tuple[Data, list[Need]]:
    """Return the images of `config`, assumed where they are not here, and what they need; nothing is downloaded."""
    data, needs = _look_for_images(config)
    encoded, given = is_encoded(config.data), config.tokenizer.checkpoint
    return data, [*needs, *([_tokenizer_need(config)] if encoded or given else [])]


def _look_for_images(config: TrialConfig) -> tuple[Data, list[Need]]:
    # Here, not on top: importing them takes a while.
    from iar_study.data.fashion_mnist import CLASS_NAMES, missing_from
    from iar_study.data.folder import list_folder
    from iar_study.data.images import data_folder

    name, path = config.data.name, config.data.name.partition(":")[2]
    side = side_of(config.data)
    if is_encoded(config.data):
        return _look_for_codes(config, Path(path).expanduser())
    if side is None or not built_in("data", name):  # only what it returns can tell
        from iar_study.pipeline.stages import images_of

        own = images_of(config.data)
        counts = len(own.train), len(own.test), len(own.class_names)
        return _images(config, *counts, own.size, own.channels), [Need("data", True, f"the images of {name}")]
    if name == "digits":
        return _images(config, 1437, 360, 10, side, 1), [Need("data", True, "scikit-learn's digits")]
    if name == "fashion-mnist":
        folder = data_folder() / "fashion-mnist"
        here = not missing_from(folder)
        need = Need(
            "data",
            here,
            "Fashion-MNIST's files" if here else f"Fashion-MNIST is not in {folder}",
            "the first run fetches it, 31 MB; without a network, put the files there by hand",
        )
        return _images(config, 60_000, 10_000, len(CLASS_NAMES), side, 1), [need]
    try:
        _, train, test, classes = list_folder(Path(path).expanduser())
    except InputError as error:
        assumed = _images(config, IMAGENET["train"], IMAGENET["test"], 1000, side, 3)
        return replace(assumed, assumed=True), [Need("data", False, str(error), "name another folder")]
    found = Need("data", True, f"{len(train.labels):,} + {len(test.labels):,} images in {path}")
    return _images(config, len(train.labels), len(test.labels), len(classes), side, 3), [found]


def _images(config: TrialConfig, train: int, test: int, classes: int, side: int, channels: int) -> Data:
    """Describe images that a run encodes itself, once each, into a cache of int32 tokens and int64 labels."""
    tokens = _tokens(side, config)
    codes = (train + test) * (4 * tokens + 8)
    return Data(config.data.name, train, 1, test, classes, side, channels, tokens, codes, codes, assumed=False)


def _tokens(side: int, config: TrialConfig) -> int:
    """Return the tokens of an image of `side` pixels."""
    check_patches(side, config.tokenizer.patch)
    return (side // config.tokenizer.patch) ** 2


def _look_for_codes(config: TrialConfig, folder: Path) -> tuple[Data, list[Need]]:
    from iar_study.data.llamagen_codes import INDEX, code_type, open_codes

    codebook, patch, side = config.tokenizer.codebook_size, config.tokenizer.patch, config.data.image_size
    found: dict[str, dict[str, Any]] = {}
    missing, needs = [], []
    for split in IMAGENET:
        if not (folder / split / INDEX).is_file():
            missing.append(split)
            continue
        try:
            found[split] = open_codes(folder / split).index
        except InputError as error:
            needs.append(Need("codes", False, str(error), "delete it, and make it again"))
    first = next(iter(found.values()), {})
    tokens, classes = first.get("tokens") or _tokens(side or 256, config), first.get("classes", 1000)
    pixels = round(tokens**0.5) * patch

    planned = (_tokens(side, config) if side else tokens, codebook, classes)
    for split, index in found.items():
        holds = (index["tokens"], index["codebook_size"], index["classes"])
        if holds != planned:
            wanted = "{} tokens an image, {:,} codes, {:,} classes"
            text = f"{folder / split}: {wanted.format(*holds)}; planned: {wanted.format(*planned)}"
            needs.append(Need("codes", False, text, "set data.image_size, tokenizer.patch and tokenizer.codebook_size"))
    if missing:
        needs.append(
            Need(
                "codes",
                False,
                f"none in {' and '.join(str(folder / split) for split in missing)}",
                f"iar-study encode IMAGES --tokenizer {config.tokenizer.checkpoint or 'FILE'} --image-size {pixels} "
                f"-o {folder}\nLlamaGen's own: iar-study pack imagenet{pixels}_codes -o {folder / missing[0]}",
            )
        )

    def facts(split: str, augmentations: int) -> tuple[int, int, int]:
        """Return images, augmentations and bytes."""
        index = found.get(split, {"images": IMAGENET[split], "augmentations": augmentations})
        image = index["augmentations"] * tokens * code_type(codebook).itemsize + 8  # with an int64 label
        return index["images"], index["augmentations"], index["images"] * image

    train, test = facts("train", 10), facts("test", 1)
    sizes = {"train": train[2], "test": test[2]}
    data = Data(
        name=config.data.name,
        train_images=train[0],
        augmentations=train[1],
        test_images=test[0],
        classes=classes,
        image_pixels=pixels,
        channels=3,
        tokens_per_image=tokens,
        codes_bytes=sum(sizes.values()),
        codes_bytes_missing=sum(size for split, size in sizes.items() if split not in found),
        assumed=len(found) < len(sizes),
    )
    if not needs:
        needs = [Need("codes", True, f"{train[0]:,} x {train[1]} + {test[0]:,} images in {folder}")]
    return data, needs


ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
"""Where ADM's reference of ImageNet is."""


def _measuring_needs(config: TrialConfig) -> list[Need]:
    """Say whether there is what samples of images that are encoded already are measured against, and by whom."""
    how = config.evaluation
    if not is_encoded(config.data):
        return []
    if how.reference is None:
        return [Need("reference", True, "none: samples are kept, and measured later by `measure --reference`")]
    path = Path(how.reference).expanduser()
    remedy = f"ADM's: {ADM}{path.name}" if path.name.startswith("VIRTUAL_") else "name another: evaluation.reference"
    needs = [Need("reference", path.exists(), how.reference if path.exists() else f"no file {path}", remedy)]
    name, _, file = how.extractor.partition(":")
    if name != "inception":
        return needs
    weights = Path(file).expanduser() if file else inception_path()
    found = str(weights) if weights.is_file() else f"no file {weights}"
    fetched = "name another: inception:FILE" if file else f"the first run fetches {INCEPTION_URL}, 96 MB"
    needs.append(Need("Inception's weights", weights.is_file(), found, fetched))
    package = has_torch_fidelity()
    needs.append(Need("torch-fidelity", package, "installed" if package else "not installed", INSTALL))
    return needs


def _codebook_needs(study: Study, configs: Sequence[tuple[Arm, int, TrialConfig]], base: TrialConfig) -> list[Need]:
    """Say which arms ask for another codebook than that of images that are encoded already."""
    if base.tokenizer.checkpoint is None:
        return []
    given = base.tokenizer.codebook_size
    sizes = {arm.name: config.tokenizer.codebook_size for arm, _, config in configs}
    if not (others := sorted({size for size in sizes.values() if size != given})):
        return []
    text = f"{base.tokenizer.checkpoint} has {given:,} codes; arms ask for {enumerated(others, 'or')}"
    fitting = " ".join(name for name, size in sizes.items() if size == given)
    return [Need("codebook", False, text, f"leave these arms out: --arms {fitting}")]


def _tokenizer_need(config: TrialConfig) -> Need:
    checkpoint = config.tokenizer.checkpoint
    if checkpoint is None:
        return Need("tokenizer", False, "codes need the one that made them", "--set tokenizer.checkpoint=FILE")
    path = Path(checkpoint).expanduser()
    if path.is_file() or ".py:" in checkpoint:  # which is loaded when the settings are checked
        return Need("tokenizer", True, checkpoint)
    remedy = "name another: --set tokenizer.checkpoint=FILE"
    if path.name == "vq_ds16_c2i.pt":
        remedy = "LlamaGen's: https://huggingface.co/FoundationVision/LlamaGen/resolve/main/vq_ds16_c2i.pt"
    return Need("tokenizer", False, f"no file {path}", remedy)


def _gpu_needs(config: TrialConfig, kinds: Sequence[Kind], gpu: str, gpus: int) -> list[Need]:
    """Say whether the GPUs that the profile asks for are here, can share a batch out, and hold the model."""
    if config.compute.device != "cuda":
        return []
    here = _gpus_here()
    named = ", ".join(f"{here.count(name)} x {name}" for name in dict.fromkeys(here)) or "none"
    elsewhere = "run where they are, or plan with another --gpus"
    needs = [Need("GPUs", len(here) >= gpus, f"{gpus} planned, {named} here", elsewhere)]

    batch, part = config.train.batch_size, config.train.micro_batch or config.train.batch_size
    parts = batch // part
    text = f"{batch} images in {plural(parts, 'part')} of {part}, shared by {plural(gpus, 'GPU')}"
    fitting = enumerated((n for n in range(1, parts + 1) if parts % n == 0), "or")
    remedy = f"uneven: --gpus {fitting}, or a smaller train.micro_batch"
    needs.append(Need("batch", parts % gpus == 0, text, remedy))

    strategy, memory = config.parallel.strategy, GPUS[gpu].memory_bytes
    state = max(getattr(kind, f"{strategy}_state_bytes_per_gpu") for kind in kinds)
    remedy = (
        "--set parallel.strategy=fsdp, or a larger GPU"
        if strategy == "ddp" and gpus > 1
        else "more GPUs, or larger ones"
    )
    text = f"{short(state, 'B')} of {short(memory, 'B')} with {strategy}, activations on top"
    needs.append(Need("GPU memory", state < memory, text, remedy))

    fast, precision = GPUS[gpu].precision, config.compute.precision
    if precision not in (fast, "float16"):  # where bfloat16 is fast, so is float16
        text = f"{gpu} has its peak in {fast}, not in {precision}"
        needs.append(Need("precision", False, text, f"--set compute.precision={fast}"))
    return needs


def _gpus_here() -> list[str]:
    """Return the names of the GPUs of this machine, by `nvidia-smi`, which answers sooner than torch."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "seed"), plural(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def short(value: float, unit: str = "") -> str:
    """Return a number with three digits and a prefix.

    >>> short(98_382_643_200), short(6_560_000_000, "B"), short(512)
    ('98.4 G', '6.56 GB', '512')
    """
    prefixes = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}
    # From 0.9995 on, three digits would be rounded up to 1,000 of the smaller unit.
    prefix = next((prefix for prefix, size in prefixes.items() if value >= 0.9995 * size), "")
    scaled = value / prefixes.get(prefix, 1)
    return f"{f'{scaled:,.0f}' if scaled >= 99.95 else f'{scaled:.3g}'} {prefix}{unit}".strip()


def hours(value: float) -> str:
    """Return hours as a plain number of two digits or more.

    >>> hours(1530.2), hours(4.21), hours(0.000123)
    ('1,530', '4.2', '0.00012')
    """
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.2g}"


def duration(value: float) -> str:
    """Return hours in the unit that fits.

    >>> duration(5000), duration(5.31), duration(0.4), duration(0.001)
    ('208 days', '5.3 h', '24 min', '3.6 s')
    """
    unit = next((unit for unit, size in UNITS.items() if value >= size), "s")
    return f"{hours(value / UNITS[unit])} {unit}"


def span(least: float, most: float) -> str:
    """Return a range of hours in the unit that fits.

    >>> span(0.11, 0.16), span(0.9, 1.3), span(0.1, 0.1)
    ('6.6 to 9.6 min', '0.9 to 1.3 h', '6 min')
    """
    low, high = duration(least), duration(most)
    if low == high:
        return low
    unit = high.partition(" ")[2]
    return f"{hours(least / UNITS[unit])} to {high}"
