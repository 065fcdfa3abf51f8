"""Pictures measured: what the extractor and the study's own classifier see in them, held against a reference.

Classifier and reference are products that trials share; `stages` makes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iar_study import parts
from iar_study.config import ClassifierConfig, TrialConfig
from iar_study.errors import InputError
from iar_study.evaluation.classifier import Classifier, classify
from iar_study.evaluation.features import Extractor, extract, load_extractor
from iar_study.evaluation.fidelity import Reference, measure_fidelity
from iar_study.evaluation.metrics import Metric, declare, fidelity_key
from iar_study.storage import load_arrays

REFERENCE = "reference."
"""What the names of a reference's arrays begin with, beside the pictures that are kept with them."""


def load_classifier(path: Path) -> Classifier:
    """Return the classifier of a cached product."""
    arrays, metadata = load_arrays(path)
    model = Classifier(ClassifierConfig(**metadata["config"]), metadata["channels"], metadata["classes"])
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return model.eval()


def extractor_of(config: TrialConfig, classifier: Path) -> Extractor:
    """Return the extractor that the config names, on its device; `classifier` is the study's own, on the CPU."""
    if config.evaluation.extractor == "classifier":
        return load_extractor("classifier", "cpu", load_classifier(classifier))
    return load_network(config.evaluation.extractor, config.compute.device)


@lru_cache(maxsize=1)
def load_network(extractor: str, device: str) -> Extractor:
    """Load a large network once per process."""
    return load_extractor(extractor, device)


def own_metrics(config: TrialConfig) -> dict[str, tuple[Callable[..., Any], Metric]]:
    """Return family -> (what measures, how it is shown) of the metrics in `evaluation.metrics`."""
    found = {}
    for spec in config.evaluation.metrics.split():
        measure, family = parts.load("metric", spec), parts.label("metric", spec)
        meaning = (inspect.getdoc(measure) or "").partition("\n")[0].removesuffix(".")
        found[family] = measure, getattr(measure, "shown", None) or Metric(family, None, 4, meaning)
    declare({family: shown for family, (_, shown) in found.items()})
    return found


def _own_value(family: str, own: Callable[..., Any], *features: np.ndarray) -> float:
    """Return what somebody's metric is of features that it cannot change; raise `InputError` where it is no number."""
    views = [array.view() for array in features]
    for view in views:
        view.flags.writeable = False
    found = own(*views)
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise InputError(f"metric {family} is to return a number, not {type(found).__name__}") from error
    if not np.isfinite(value):
        raise InputError(f"metric {family} is {value} of these samples; it is to be finite")
    return value


def measure_pictures(
    pictures: np.ndarray,
    labels: np.ndarray,
    reference: Reference,
    extractor: Extractor,
    classifier: Path,
    config: TrialConfig,
) -> dict[str, float]:
    """Return the `family/extractor@count` metrics of uint8 pictures (n, h, w, c) of the classes `labels`, int (n,)."""
    count = len(pictures)
    features, probabilities, told = seen_by(extractor, classifier, pictures)
    found = measure_fidelity(reference, features, probabilities, intervals=False)
    values = {family: estimate.value for family, estimate in found.items()}
    values |= {
        family: _own_value(family, own, reference.features, features)
        for family, (own, _) in own_metrics(config).items()
    }
    metrics = {fidelity_key(family, extractor.name, count): value for family, value in values.items()}
    return metrics | {fidelity_key("class_agreement", "classifier", count): float((told == labels).mean())}


def seen_by(
    extractor: Extractor, classifier: Path, pictures: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Look at uint8 pictures (n, h, w, c): what the extractor sees, and the class that the classifier puts them in.

    Returns features float32 (n, F), the extractor's class probabilities float32 (n, K) or None, and int (n,).
    """
    parts = (pictures[first : first + extractor.batch] for first in range(0, len(pictures), extractor.batch))
    features, probabilities = extract(extractor, parts, len(pictures))
    if extractor.name == "classifier" and probabilities is not None:
        return features, probabilities, probabilities.argmax(1)
    return features, probabilities, classify(load_classifier(classifier), pictures)[1]


def load_reference(path: Path) -> Reference:
    """Return what samples are measured against."""
    arrays, _ = load_arrays(path)
    return Reference.from_arrays(
        {name.removeprefix(REFERENCE): array for name, array in arrays.items() if name.startswith(REFERENCE)}
    )
