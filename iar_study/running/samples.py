"""Samples as files: draw them from a finished trial for anyone's evaluator, and measure those of any model.

An export is drawn as the trial drew what it was measured on, so its first pictures are those, bit for bit.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iar_study.config import SIDES, ClassifierConfig, DataConfig, TrialConfig
from iar_study.data.images import Images, has_images
from iar_study.data.picture_sets import PictureSet, open_pictures, write_npz
from iar_study.errors import InputError, listed, nearest
from iar_study.evaluation.evaluators import Evaluators, load_evaluators
from iar_study.evaluation.feature_parts import FeatureParts, reference_of
from iar_study.evaluation.features import BATCH, Extractor, Seen, extract_all, load_extractor, with_channels
from iar_study.evaluation.fidelity import (
    Estimate,
    Gaussian,
    Z,
    frechet_distance,
    frechet_standard_error,
    measure_fidelity,
    perfect_coverage,
)
from iar_study.evaluation.metrics import FIDELITY, TOO_FEW, fidelity_key, metric_named
from iar_study.pipeline.carried_over import carry_over, training_of
from iar_study.pipeline.drawing import drawn_tokens, sampled_classes, sampling_model
from iar_study.pipeline.measuring import SET, classes_told, geometric_mean
from iar_study.pipeline.stages import THREADS, evaluators_product, images_of
from iar_study.pipeline.workspace import Workspace, config_of, is_finished, read_record
from iar_study.running.display import Display
from iar_study.storage import digest, load_arrays, load_metadata, locked, unwritable
from iar_study.tokenizers.given import DECODED_AT_ONCE, decoded, load_tokenizer, tokenizer_digest
from iar_study.tokenizers.vq import Tokenizer
from iar_study.training.train_gpt import settle_torch

SEED = 0
"""Of the intervals of `evaluate`."""

KEPT_AT_ONCE = 5000
"""Pictures whose features are kept together: what a kill can cost."""


@dataclass(frozen=True)
class FinishedTrial:
    """What a finished trial left behind.

    Attributes
    ----------
    folder : its own, named by its hash.
    trained : that of its training, which has the weights and the tokens of samples.
    described : the content of trial.json.
    config : its resolved config.
    """

    folder: Path
    trained: Path
    described: dict[str, Any]
    config: TrialConfig

    @classmethod
    def find(cls, workspace: Workspace, name: str) -> FinishedTrial:
        """Return the trial whose hash begins with `name`; raise `InputError` unless it is one, and finished."""
        folders = sorted(path.parent for path in workspace.trials.glob("*/trial.json"))
        found = [folder for folder in folders if name and folder.name.startswith(name)]
        if len(found) != 1:
            shown = listed(folder.name for folder in found or folders)
            raise InputError(
                f"{name!r} begins the hash of {len(found)} trials in {workspace.trials}, not of one; there: {shown}"
            )
        [folder] = found
        if not is_finished(folder):
            raise InputError(f"trial {folder.name} is not finished; run its study again, and it goes on")
        carry_over(workspace)
        described = read_record(folder)
        return cls(folder, workspace.trainings / training_of(described), described, config_of(described))

    @property
    def hash(self) -> str:
        return self.folder.name

    @property
    def classes(self) -> int:
        return self.described["data"]["classes"]

    def asked(self, count: int) -> TrialConfig:
        """Return its config with so many samples."""
        return replace(self.config, evaluation=replace(self.config.evaluation, samples=count))

    def tokens(self, count: int, progress_folder: Path, show: Any) -> np.ndarray:
        """Return the tokens (count, T) of its first samples: those that are kept, and what is drawn to go on.

        Raises `InputError` where some are to be drawn and the weights are not here.
        """
        asked, step = self.asked(count), self.config.train.steps

        def model() -> Any:
            grid = self.described["data"]["image_size"] // self.config.tokenizer.patch
            return sampling_model(self.trained, asked, self.classes, grid, step)

        settle_torch(self.config)
        return drawn_tokens(
            self.trained,
            asked,
            self.classes,
            step,
            model,
            progress_folder,
            show=partial(show, "drawing samples", detail=""),
        )

    def tokenizer(self, workspace: Workspace) -> Tokenizer:
        """Return the tokenizer of the codes; raise `InputError` where it is gone, or another one in its place."""
        given = self.config.tokenizer.checkpoint
        tokenizer = load_tokenizer(given or self.product(workspace, "tokenizer"))
        if given and tokenizer_digest(tokenizer) != self.described["inputs"]["tokenizer"]:
            raise InputError(f"{given} is not the tokenizer that trial {self.hash} had; put that one back")
        return tokenizer.to(self.config.compute.device).eval()

    def product(self, workspace: Workspace, kind: str) -> Path:
        """Return where in the cache the trial's `tokenizer` or `evaluators` lie, by the digest of their content."""
        wanted = self.described["inputs"].get(kind)
        if wanted is None:
            raise InputError(
                f"trial {self.hash} has no {kind} of its own: its images came encoded, or an older version ran it; "
                f"choose another"
            )
        for path in sorted(workspace.cache.glob(f"{kind}-*.safetensors")):
            with suppress(InputError):  # a damaged one may be another trial's
                if load_arrays(path)[1].get("digest") == wanted:
                    return path
        raise InputError(
            f"the {kind} of trial {self.hash} can no longer be found in {workspace.cache}; "
            f"run the trial's study again, which makes what is missing"
        )


def export_samples(
    workspace: Workspace, trial: str, path: Path, count: int | None = None, display: Display | None = None
) -> PictureSet:
    """Draw samples from a finished trial into an .npz as ADM's evaluator reads it, and return them, opened.

    The first `evaluation.samples` pictures are those that the trial was measured on; the classes go on in turn. Tokens
    are kept in the folder `path`.parts until all is written, so that a call that was killed goes on.

    Parameters
    ----------
    trial : the hash of a trial in runs/trials, or its beginning.
    path : gets arr_0, uint8 (count, H, W, 3), grey repeated, and arr_1, int64 (count,).
    count : default: as many as the trial was measured on.

    Raises
    ------
    InputError : no such trial, its tokenizer or its kind of device is not here, or `path` cannot be written.
    """
    path, show = Path(path), (display or Display(quiet=True)).update
    if path.suffix != ".npz":
        raise InputError(f"samples are written as .npz, not to {path}; give a name that ends so")
    found = FinishedTrial.find(workspace, trial)
    count = found.config.evaluation.samples if count is None else count
    if count < 1:
        raise InputError(f"{count} samples cannot be drawn; ask for 1 or more")
    if found.config.compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"trial {found.hash} drew its samples on a GPU, and torch finds none here; export where one is"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as in training: the same bits each time
    tokenizer = found.tokenizer(workspace)
    with _parts(path) as parts:
        tokens = found.tokens(count, parts, show)
        side = found.config.evaluation.image_size or found.described["data"]["image_size"]
        labels = sampled_classes(found.asked(count), found.classes)
        write_npz(path, _decode(found, tokenizer, tokens, show), count, (side, side, 3), labels)
    return open_pictures(path)


def spans(measured: int, count: int, at_once: int) -> list[tuple[int, int]]:
    """Return the samples (first, end) that are decoded together: the trial's own as it took them, then the rest.

    The last bits of a picture may depend on which others are decoded with it. The last span may reach beyond `count`.

    >>> spans(250, 350, 100)
    [(0, 100), (100, 200), (200, 250), (250, 350)]
    """
    own = [(first, min(first + at_once, measured)) for first in range(0, measured, at_once)]
    rest = [(first, first + at_once) for first in range(measured, count, at_once)]
    return [span for span in own + rest if span[0] < count]


def _decode(found: FinishedTrial, tokenizer: Tokenizer, tokens: np.ndarray, show: Any) -> Iterator[np.ndarray]:
    """Give the pictures, uint8 (b, H, W, 3), of tokens (n, T), decoded together as the trial did."""
    count, how = len(tokens), found.config.evaluation
    at_once = max(1, DECODED_AT_ONCE // (tokens.shape[1] * tokenizer.patch**2))
    if how.reference:
        at_once = BATCH  # they went to the extractor as they were decoded
    for first, end in spans(how.samples, count, at_once):
        yield with_channels(next(decoded(tokenizer, tokens[first:end], at_once, size=how.image_size)), 3)
        show("decoding", min(end, count), count)


@contextmanager
def _parts(path: Path) -> Iterator[Path]:
    """Give the folder beside `path` for what is finished of it; success takes it away, and nothing else does.

    Raises `InputError` when another process is writing the same file.
    """
    parts = path.with_name(f"{path.name}.parts")
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(parts, error) from error
    with locked(parts / "lock", path):
        for file in path.parent.iterdir():
            if file.name.startswith(f".{path.name}.") and file.suffix == ".tmp":  # of a call that was killed
                file.unlink()
        yield parts
    shutil.rmtree(parts)


@dataclass(frozen=True)
class Evaluation:
    """Samples measured against a reference.

    Attributes
    ----------
    compared : what was compared: `samples`, `reference`, `extractor`, `seed` and `notes`, as JSON.
    measured : the estimates by their keys, such as `fd/inception@50k`.
    """

    compared: dict[str, Any]
    measured: dict[str, Estimate]

    def as_json(self) -> str:
        """Return all of it for programs."""
        metrics = {}
        for key, estimate in self.measured.items():
            metric = metric_named(key)
            metrics[key] = {
                "label": metric.label,
                **asdict(estimate),
                "better": metric.better,
                "fewest_samples": metric.fewest,
            }
        return json.dumps({**self.compared, "metrics": metrics}, indent=2)

    def text(self) -> str:
        """Return all of it for a reader, as aligned lines."""
        lines = []
        for name in ("samples", "reference"):
            one = self.compared[name]
            size = f"{one['height']} x {one['width']} x {one['channels']}"
            lines.append(f"{name:<9}  {one['source']}: {one['count']} images, {size}, SHA-256 {one['sha256'][:12]}")
        extractor = self.compared["extractor"]
        accuracy = extractor.get("accuracy")
        right = "" if accuracy is None else f", right about {accuracy:.1%} of its held-out images"
        lines.append(f"extractor  {extractor['name']}{right}; seed {self.compared['seed']} of the intervals")
        lines += [f"note       {note}" for note in self.compared["notes"]]
        rows = [("metric", "key", "value", "95% interval", "better")]
        for key, estimate in self.measured.items():
            metric = metric_named(key)
            value, low, high = (f"{x:.{metric.digits}f}" for x in (estimate.value, estimate.low, estimate.high))
            rows.append((metric.label, key, value, f"{low} to {high}", metric.better or ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        return "\n".join([*lines, "", *table])


def evaluate_samples(
    samples_path: Path,
    reference: str,
    extractor_spec: str,
    workspace: Workspace,
    display: Display,
    *,
    image_size: int | None = None,
    samples: int | None = None,
) -> Evaluation:
    """Measure samples of any model against real pictures, in the features of an extractor.

    Features that take long are kept in runs/cache, so a call that was killed goes on.

    Parameters
    ----------
    samples_path, samples : an .npz with `arr_0` or a folder of pictures; the first `samples` of them (default: all).
    reference : a data set (`digits`, `fashion-mnist`, `folder:PATH`), whose held-out images are taken, or an .npz or a
        folder. An ADM reference batch's own mean and covariance are used with `inception`.
    extractor_spec : `set` (the evaluators of the data set, made once, and kept), `set:TRIAL` (by which that trial was
        measured), `inception`, `inception:FILE` or `dinov2`.
    image_size : of `folder:PATH`, as in a study on it.

    Raises
    ------
    InputError : pictures that cannot be read or compared, or an extractor that cannot be had.
    """
    pictures = open_pictures(samples_path)
    pictures = pictures.head(pictures.count if samples is None else samples)
    images = _data_set(reference, image_size)
    if images is not None:
        held_out = PictureSet.of(f"{images.name}, held out", images.test, images.test_labels, images.class_names)
    elif Path(reference).exists():
        held_out = open_pictures(Path(reference))
    else:
        known = nearest(reference, [*SIDES, "folder:PATH"])
        raise InputError(f"no images at {reference}, and no data set of that name; {known}")
    kind, _, trial = extractor_spec.partition(":")
    evaluators: Evaluators | None = None
    extractors: tuple[Extractor, ...]
    facts: dict[str, Any] = {"name": kind}
    if kind == SET:
        if pictures.shape[:2] != held_out.shape[:2]:
            raise InputError(
                f"the evaluators compare images of one size, but {pictures.source} has "
                f"{_size(pictures)} and {held_out.source} has {_size(held_out)}; resize one of them"
            )
        torch.set_num_threads(THREADS)  # as in a trial: the same bits
        device = "cpu"
        product = _evaluators(trial, images, reference, workspace, display)
        evaluators = load_evaluators(product)
        about = load_metadata(product)
        facts = {"name": evaluators.name, "product": product.name, "accuracy": float(np.mean(about["accuracies"]))}
        extractors = evaluators.members
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        extractors = (load_extractor(extractor_spec, device, progress=lambda *at: display.update("weights", *at)),)

    first = extractors[0]
    of_reference = {each.name: _features(held_out, each, "reference", workspace, display) for each in extractors}
    seen = {each.name: _features(pictures, each, "samples", workspace, display) for each in extractors}
    notes, given = [], (held_out.statistics, held_out.spatial_statistics)
    if first.name != "inception":
        given = (None, None)
    elif told := [name for name, moments in zip(("mu", "mu_s"), given, strict=True) if moments is not None]:
        notes.append(
            f"FD is to {' and '.join(told)} of {held_out.source}, of more images than it holds; "
            f"the other metrics are to its {held_out.count} images"
        )
    measured = measure_fidelity(
        reference_of(of_reference[first.name], held_out.source, *given, device="cuda" if device == "cuda" else None),
        *seen[first.name],
        intervals=True,
        seed=SEED,
        progress=display.update,
    )
    estimates = {fidelity_key(family, first.name, pictures.count): found for family, found in measured.items()}
    if evaluators is not None:
        by_member = {first.name: measured["fd"]}
        for each in extractors[1:]:
            of_images = of_reference[each.name].features
            by_member[each.name] = _frechet(of_images, seen[each.name].features, display)
        of_members = {fidelity_key("fd", name, pictures.count): found for name, found in by_member.items()}
        of_set = {fidelity_key("fd", evaluators.name, pictures.count): _of_set(list(by_member.values()))}
        estimates = of_set | of_members | estimates
        classes = classes_told(evaluators, seen)
        labels, why = _labels(pictures, images, about["classes"])
        if labels is None:
            notes.append(f"no class agreement: {why}")
        else:
            key = fidelity_key("class_agreement", evaluators.name, pictures.count)
            # The mean over classifiers first: samples are independent, several opinions on one are not.
            estimates[key] = Estimate.mean(np.mean([each == labels for each in classes], axis=0))
    notes += _cautions(estimates, pictures.count, held_out.count)
    # Those of the reference stay: other samples are measured against it, too.
    shutil.rmtree(_kept(pictures, first, workspace), ignore_errors=True)
    compared = {
        "samples": _described(pictures),
        "reference": _described(held_out),
        "extractor": facts,
        "seed": SEED,
        "notes": notes,
    }
    return Evaluation(compared, estimates)


def _data_set(reference: str, image_size: int | None) -> Images | None:
    """Return the data set that `reference` names, if it names one and no file."""
    if has_images(reference) or reference.startswith("folder:"):
        return images_of(DataConfig(reference, image_size))
    if reference.startswith("codes:"):
        raise InputError(f"{reference} has codes, and no images to compare with; give the images: folder:PATH")
    if image_size is not None:
        raise InputError(f"--image-size is for folder:PATH; the images of {reference} are taken as they are")
    return None


def _evaluators(trial: str, images: Images | None, reference: str, workspace: Workspace, display: Display) -> Path:
    """Return the product of the evaluators that a trial was measured by, or of the data set's own."""
    if trial:
        return FinishedTrial.find(workspace, trial).product(workspace, "evaluators")
    if images is None:
        raise InputError(
            f"the evaluators are of a data set, and {reference} is none; "
            f"choose --extractor inception, or set:TRIAL for those of a trial"
        )
    return evaluators_product(images, ClassifierConfig(), workspace, display.update)


def _frechet(reference: np.ndarray, features: np.ndarray, display: Display) -> Estimate:
    """Return the Frechet distance of features (n, F) from those of the reference (m, F), with its interval."""
    fitted = Gaussian.of(reference)
    error = frechet_standard_error(fitted, features, SEED, display.update)
    return Estimate.around(frechet_distance(fitted, features), error)


def _of_set(members: list[Estimate]) -> Estimate:
    """Return the geometric mean of what the members of a set found.

    All members see the same samples, and what is peculiar to these moves all of them alike: the error of the mean log
    is taken to be the mean of the members' errors, which is the most that it can be.
    """
    value = geometric_mean([each.value for each in members])
    shares = [(each.high - each.value) / each.value for each in members if each.value]
    return Estimate.around(value, value * float(np.mean(shares)) / Z if value else 0.0)


def _features(pictures: PictureSet, extractor: Extractor, what: str, workspace: Workspace, display: Display) -> Seen:
    """Return what the extractor sees in pictures; what takes long is kept as it goes on."""

    def show(done: int, total: int, detail: str) -> None:
        display.update(f"features of the {what}", before + done, pictures.count, detail)

    before, batch = 0, extractor.batch
    if extractor.identity is None:
        return extract_all(extractor, pictures.batches(batch), pictures.count, show)
    kept = FeatureParts(_kept(pictures, extractor, workspace))
    numbers = range(math.ceil(pictures.count / KEPT_AT_ONCE))
    whole = next((number for number in numbers if not kept.has(number)), len(numbers))
    stream = pictures.batches(batch, whole * KEPT_AT_ONCE)
    for number in numbers[whole:]:
        before = number * KEPT_AT_ONCE
        count = min(KEPT_AT_ONCE, pictures.count - before)
        # A part is whole batches of every extractor here: else its last batch would reach into the next part.
        kept.save(number, extract_all(extractor, islice(stream, math.ceil(count / batch)), count, show))
    return kept.joined(numbers)


def _kept(pictures: PictureSet, extractor: Extractor, workspace: Workspace) -> Path:
    """Return where features of pictures are kept."""
    return workspace.cache / f"features-{digest(extractor.identity, pictures.digest, pictures.count)[:16]}"


def _labels(pictures: PictureSet, images: Images | None, classes: int) -> tuple[np.ndarray | None, str]:
    """Return the classes of samples as the classifiers count them, or None and why they are not known."""
    if pictures.labels is None:
        return None, f"{pictures.source} does not tell the classes that were asked for"
    labels = pictures.labels
    if pictures.class_names is not None:
        names = images.class_names if images is not None else ()
        if unknown := set(pictures.class_names) - set(names):
            return None, f"the reference has no class {listed(unknown)}, as folders of {pictures.source} are named"
        labels = np.array([names.index(name) for name in pictures.class_names])[labels]
    if labels.min() < 0 or labels.max() >= classes:
        return None, f"{pictures.source} has classes {labels.min()} to {labels.max()}, the classifiers know {classes}"
    return labels, ""


def _cautions(estimates: dict[str, Estimate], count: int, beside: int) -> list[str]:
    """Return what a reader has to know of these values before he believes them."""
    notes: list[str] = []
    fewest: dict[int, dict[str, str]] = defaultdict(dict)
    for key in estimates:
        if count < (metric := metric_named(key)).fewest:
            fewest[metric.fewest][FIDELITY[key.partition("/")[0]].label] = key
    notes += [
        f"{TOO_FEW} {count:,} samples are too few: from {least:,} on there is a meaning in {', '.join(labels)}"
        for least, labels in sorted(fewest.items())
    ]
    for key, estimate in estimates.items():
        family = key.partition("/")[0]
        if family == "fd_inf" and estimate.value < 0:
            notes.append("FD at infinity is below 0, as no distance is: it cannot be told from 0 with these samples")
        if family == "coverage" and (perfect := perfect_coverage(count, beside)) < 0.95:
            notes.append(f"coverage: {count:,} perfect samples beside {beside:,} images would have {perfect:.2f}")
    return notes


def _size(pictures: PictureSet) -> str:
    return f"{pictures.height} x {pictures.width} pixels"


def _described(pictures: PictureSet) -> dict[str, Any]:
    """Return what an output says of pictures."""
    keys = ("source", "count", "height", "width", "channels")
    return {**{key: getattr(pictures, key) for key in keys}, "sha256": pictures.digest}
