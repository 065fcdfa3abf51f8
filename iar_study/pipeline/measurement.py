"""What is measured of a training wherever its weights are kept: predictions on held-out images, and samples."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from PIL import Image

from iar_study.codebook import Rearrangement
from iar_study.config import TrialConfig, times_of
from iar_study.data.codes import Codes
from iar_study.evaluation.evaluators import load_evaluators
from iar_study.evaluation.feature_parts import FeatureParts, parts_of
from iar_study.evaluation.features import extract_all, with_channels
from iar_study.evaluation.fidelity import Reference
from iar_study.evaluation.predictions import Judge, by_position, evaluate_predictions
from iar_study.generators.gpt import GPT
from iar_study.pipeline.drawing import drawn_tokens, load_model, sampled_classes
from iar_study.pipeline.making import decode
from iar_study.pipeline.measuring import load_network, load_references, measure_pictures, measure_seen
from iar_study.pipeline.trial import Training, Trial
from iar_study.storage import Kept, load_arrays, replacing, save_arrays
from iar_study.tokenizers.given import decoded, load_tokenizer
from iar_study.tokenizers.vq import Tokenizer
from iar_study.training.journal import Journal
from iar_study.training.parallel import collected, first_of, total
from iar_study.training.progress import Diverged
from iar_study.training.train_gpt import original_order

GRID_ROWS, GRID_COLUMNS = 10, 8
"""Classes, the first ones, and pictures of each that a trial keeps for the sample grids."""

PROGRESS = "progress"
"""Folder, in the trial's, of what an evaluation or the drawing of samples has so far; see `storage.Kept`."""

EVALUATED_AT_ONCE = 250
"""Images that are evaluated together; fewer where a part of a batch is smaller."""


class Measurement:
    """Follows a training, or the journal of one that was there before, and writes the trial's own journal.

    A trial of a study that trains has all that its training tells, and is measured wherever weights are kept. One of a
    study that samples is measured at the end, by its samples alone.

    Parameters
    ----------
    training : of the trial; its folder has the weights.
    codes : the tokens, in the original order of the codes.
    fabric : of the processes that share the work out; each of them follows.
    """

    def __init__(self, trial: Trial, training: Training, trials: Path, codes: Codes, fabric: Fabric) -> None:
        self.trial, self.codes, self.fabric = trial, codes, fabric
        self.folder, self.trained = trial.folder(trials), training.folder(trials)
        self.arranged = Rearrangement.load(trial.shared.rearrangement)
        config, self.whole = trial.config, trial.kind == "training"
        self.kept = times_of(config.train.steps, config.train.kept if self.whole else 1)
        self.sampled = times_of(config.train.steps, config.sampled_times if self.whole else 1)
        self.wanted = tuple(dict.fromkeys((*self.kept, *self.sampled)))
        self.journal = Journal(self.folder / "journal.jsonl") if fabric.is_global_zero else None
        self.last: int = first_of(fabric, lambda: self.journal and self.journal.last_step)

    def follow(self, step: int, told: Mapping[str, float], model: GPT | None) -> None:
        """Measure what is to be measured at a step, unless it was, and write it with what the training told of it.

        model : in the arm's order of codes; where it is None, the weights that were kept are loaded if need be.

        Raises `Diverged` where the model predicts nothing finite.
        """
        if step <= self.last or (not self.whole and step not in self.sampled):
            return
        metrics = dict(told) if self.whole else {}

        def trained() -> GPT:
            nonlocal model
            if model is None:
                classes = len(self.codes.class_names)
                model = load_model(self.trained, self.trial.config, classes, self.codes.grid, step)
            return model

        # Predictions first: for samples, the model's rows go back to the original order in place.
        if self.whole and step in self.kept:
            metrics |= self._predictions(trained(), step)
        if step in self.sampled:
            metrics |= self._samples(lambda: original_order(trained(), self.arranged), step)
        if self.journal is not None:
            self.journal.write(step, metrics)
            # Its result is written. Of this step alone: other processes may be at the next.
            shutil.rmtree(self._progress(step), ignore_errors=True)
        self.last = step

    def _progress(self, step: int) -> Path:
        return self.folder / PROGRESS / str(step)

    def _predictions(self, model: GPT, step: int) -> dict[str, float]:
        """Return the `val/*` metrics, and keep the last by position in the image."""
        kept = Kept(self._progress(step) / f"evaluated-{self.fabric.global_rank}.safetensors")
        judging = Rearrangement.load(self.trial.shared.judging)
        metrics, sums = judge_predictions(
            model, self.trial.config, self.codes, self.arranged, judging, self.fabric, kept
        )
        if not math.isfinite(metrics["val/token_nll"]):
            raise Diverged(step)
        if step == self.kept[-1] and self.fabric.is_global_zero:
            save_arrays(self.folder / "predictions.safetensors", by_position(sums))
        return metrics

    def _samples(self, model: Callable[[], GPT], step: int) -> dict[str, float]:
        """Return the `family/extractor@count` metrics of samples, and keep the first of each class as pictures.

        The processes share the drawing out. The first one measures; where the reference is given, and samples may be
        large and many, all look at them.
        """
        config, shared, n_classes = self.trial.config, self.trial.shared, len(self.codes.class_names)
        tokens = drawn_tokens(self.trained, config, n_classes, step, model, self._progress(step), self.fabric)
        labels = sampled_classes(config, n_classes)
        if self.fabric.is_global_zero:
            self._show(tokens, labels)
        if shared.reference is None:
            return {}
        if shared.evaluators is None:
            return self._in_parts(tokens, shared.reference, step)
        if not self.fabric.is_global_zero:
            return {}
        pictures = decode(shared, tokens, config.compute.device)
        reference, evaluators = load_references(shared.reference), load_evaluators(shared.evaluators)
        return measure_pictures(pictures, labels, reference, evaluators, config)

    def _show(self, tokens: np.ndarray, labels: np.ndarray) -> None:
        """Keep the first samples of the first classes as pictures, where there are enough of each."""
        shown = [np.flatnonzero(labels == label)[:GRID_COLUMNS] for label in range(GRID_ROWS)]
        shown = shown[: len(self.codes.class_names)]
        if min(map(len, shown)) < GRID_COLUMNS:
            return
        grid = decode(self.trial.shared, tokens[np.concatenate(shown)], self.trial.config.compute.device)
        grid = grid.reshape(len(shown), GRID_COLUMNS, *grid.shape[1:])
        save_arrays(self.folder / "samples.safetensors", {"samples": grid})
        save_grid(self.folder / "samples.png", grid)

    def _in_parts(self, tokens: np.ndarray, product: Path, step: int) -> dict[str, float]:
        """Measure samples whose features alone are kept, a part at a time: a kill costs one part.

        product : the reference.
        """
        config, device = self.trial.config, self.trial.config.compute.device
        extractor, parts = load_network(config.evaluation.extractor, device), parts_of(len(tokens))
        kept = FeatureParts(self._progress(step) / "features")
        for number in range(self.fabric.global_rank, len(parts), self.fabric.world_size):
            if not kept.has(number):
                some = tokens[slice(*parts[number])]
                pictures = decoded(self.tokenizer, some, extractor.batch, size=config.evaluation.image_size)
                batches = (with_channels(images, 3) for images in pictures)  # as the reference's
                kept.save(number, extract_all(extractor, batches, len(some)))
        collected(None)  # now all parts are there
        if not self.fabric.is_global_zero:
            return {}
        reference = Reference.from_arrays(load_arrays(product)[0], "cuda" if device == "cuda" else None)
        return measure_seen(kept.joined(range(len(parts))), reference, extractor.name, config)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """What decodes, on the trial's device."""
        return load_tokenizer(self.trial.shared.tokenizer).to(self.trial.config.compute.device)


def judge_predictions(
    model: GPT,
    config: TrialConfig,
    codes: Codes,
    arranged: Rearrangement,
    judging: Rearrangement,
    fabric: Fabric,
    kept: Kept | None = None,
) -> tuple[dict[str, float], torch.Tensor]:
    """Judge a model, in the order of codes of `arranged`, on this process's share of the held-out images.

    judging : the clusters that `val/*` metrics are measured by, alike for every arm.

    Returns the metrics over all processes, and the judge's sums by position in the image.
    """
    held_out = slice(fabric.global_rank, config.evaluation.images, fabric.world_size)
    return evaluate_predictions(
        model,
        labels=torch.from_numpy(codes.test_labels[held_out]).to(fabric.device),
        tokens=torch.from_numpy(arranged.tokens(codes.test_tokens[held_out])).long().to(fabric.device),
        own=torch.from_numpy(arranged.boundaries),
        judge=Judge(judging, arranged, codes.codebook.vectors, fabric.device),
        total=partial(total, fabric),
        images_at_once=min(config.train.micro_batch or EVALUATED_AT_ONCE, EVALUATED_AT_ONCE),
        kept=kept,
    )


def save_grid(path: Path, grid: np.ndarray) -> None:
    """Write uint8 (rows, columns, h, w, c) as one PNG; small pictures are enlarged."""
    rows, columns, height, width, channels = grid.shape
    scale = max(96 // height, 1)
    sheet = grid.swapaxes(1, 2).reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet)
    with replacing(path) as temporary:
        picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(
            temporary, format="PNG"
        )
