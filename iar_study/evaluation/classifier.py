"""A small classifier of the study's own images: several make a set of evaluators, which samples are measured by.

FID's Inception network wants 299-pixel photographs and weights from elsewhere. A classifier trained on the very images
of the study sees what matters in them. `training.train_classifier` trains it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from iar_study.config import ClassifierConfig
from iar_study.errors import InputError
from iar_study.evaluation.metrics import WIDTHS
from iar_study.tokenizers.vq import to_float

FEATURES = WIDTHS["classifier"]

POOLED = 4
"""Side of the grid that the last feature map is averaged to: some sense of place stays, and any image size fits."""


class Classifier(nn.Module):
    """Three convolutions and a layer of `FEATURES` units, all with batch normalisation and ReLU, then the logits.

    Parameters
    ----------
    config : `channels` is the width of the first convolution, the others have twice as many.
    in_channels : 1 (grey) or 3 (RGB).
    n_classes : number of classes.
    """

    def __init__(self, config: ClassifierConfig, in_channels: int, n_classes: int) -> None:
        super().__init__()
        width = config.channels
        self.in_channels = in_channels
        self.body = nn.Sequential(
            *_convolution(in_channels, width, stride=2),
            *_convolution(width, 2 * width, stride=2),
            *_convolution(2 * width, 2 * width, stride=1),
            nn.AdaptiveAvgPool2d(POOLED),
            nn.Flatten(),
            nn.Linear(2 * width * POOLED**2, FEATURES, bias=False),
            nn.BatchNorm1d(FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, n_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return float (B, FEATURES), 0 or more, of float images (B, C, H, W) in [-1, 1].

        Raises `InputError` when the images have other channels than the model.
        """
        if images.shape[1] != self.in_channels:
            raise InputError(f"the classifier is for {self.in_channels} channels, the images have {images.shape[1]}")
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float (B, n_classes)."""
        return self.head(self.features(images))


def _convolution(n_in: int, n_out: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(n_out), nn.ReLU()]


@torch.no_grad()
def classify(model: Classifier, images: np.ndarray, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Return (features float32 (n, FEATURES), predicted labels int64 (n,)) of uint8 images (n, H, W, C).

    The model must be in evaluation mode, as `training.classifier` returns it.
    """
    features = torch.cat([model.features(to_float(images[i : i + batch])) for i in range(0, len(images), batch)])
    return features.numpy(), model.head(features).argmax(dim=1).numpy()
