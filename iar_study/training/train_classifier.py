"""Train a classifier, of those in whose features samples are measured, in half a minute on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iar_study.config import ClassifierConfig
from iar_study.data.batches import batch_indices
from iar_study.errors import InputError
from iar_study.evaluation.classifier import Classifier
from iar_study.tokenizers.vq import to_float
from iar_study.training.one_cycle import Progress, train_one_cycle


def train_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    n_classes: int,
    config: ClassifierConfig,
    *,
    threads: int,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Classifier:
    """Train by cross-entropy with AdamW and a one-cycle learning rate.

    The bits of the result depend on (images, labels, config, threads) and the machine alone. Sets torch's seed and its
    number of threads for the process.

    Parameters
    ----------
    images, labels : uint8 (n, side, side, channels) and int64 (n,), each label in [0, n_classes).
    threads : CPU threads.
    folder, progress : see `train_one_cycle`.

    Raises
    ------
    InputError : images, labels and config do not fit together, or the loss is no longer finite.
    """
    if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() >= n_classes:
        raise InputError(f"expected {len(images)} labels from 0 to {n_classes - 1}, got an array {labels.shape}")
    if config.batch_size < 2:
        raise InputError("classifier.batch_size = 1 is too small for batch normalisation; take 2 or more")
    torch.set_num_threads(threads)
    torch.manual_seed(config.seed)
    model = Classifier(config, images.shape[-1], n_classes).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.05, fused=True)

    def loss_of(step: int) -> Tensor:
        batch = batch_indices(len(images), config.batch_size, step, config.seed)
        return F.cross_entropy(model(to_float(images[batch])), torch.from_numpy(labels[batch]))

    train_one_cycle(
        "classifier",
        model,
        optimizer,
        loss_of,
        config,
        rise=0.2,
        folder=folder,
        progress=progress,
    )
    return model.eval()
