"""Make what trials share: the functions behind `stages`, each of which writes one product.

Each returns nothing and is called where the product is not there yet; `path` is where it is to be.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iar_study.codebook import Codebook, Rearrangement, cluster_codes
from iar_study.config import ClassifierConfig, ClusteringConfig, TokenizerConfig, TrialConfig
from iar_study.data.codes import Codes
from iar_study.data.images import Images
from iar_study.data.picture_sets import PictureSet
from iar_study.evaluation.classifier import classify
from iar_study.evaluation.evaluators import (
    CLASSIFIERS,
    classifier_of,
    load_evaluators,
    packed,
    principal_components,
    weights_of,
)
from iar_study.evaluation.exactness import decoding_gap, equivariance_gap
from iar_study.evaluation.feature_parts import FeatureParts, parts_of, reference_of
from iar_study.evaluation.features import Extractor, extract_all, with_channels
from iar_study.parts import sources, versions
from iar_study.pipeline.encoded import Encoded
from iar_study.pipeline.measuring import References, extractors_of, measure_pictures
from iar_study.pipeline.stages import EVALUATORS, EXACT_IMAGES, RECIPE, THREADS, Progress, Shared, makers_of_clustering
from iar_study.storage import Kept, content_digest, load_arrays, load_metadata, save_arrays
from iar_study.tokenizers.given import codebook_of, decode_tokens, decoded, load_tokenizer
from iar_study.training.train_classifier import train_classifier
from iar_study.training.train_tokenizer import describe_tokenizer, encode_images, train_tokenizer

COUNTED_AT_ONCE = 2**22
"""Tokens that are read at a time to count them: 32 MB."""


def _save(path: Path, makers: Sequence[str], arrays: dict[str, np.ndarray], **metadata: Any) -> None:
    content = content_digest(arrays)
    save_arrays(path, arrays, {**metadata, "digest": content, "recipe": RECIPE, "makers": sources(makers)})


@contextmanager
def _kept(path: Path) -> Iterator[Path]:
    """Give the folder that keeps what is done of a product, until it is whole."""
    folder = path.with_name(f".{path.stem}.progress")
    yield folder
    # Not in a `finally`: after an error, what is done is to be found again.
    shutil.rmtree(folder, ignore_errors=True)


def _state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _rule(codebook: Codebook) -> dict[str, str]:
    """Return what a product tells of the look-up rule; nothing where it is by cosine, as before there was another."""
    return {} if codebook.lookup == "cosine" else {"lookup": codebook.lookup}


def make_tokenizer(path: Path, images: Images, config: TokenizerConfig, progress: Progress) -> None:
    """Train the VQ autoencoder; its header holds PSNR on held-out images, codebook usage and perplexity."""
    with _kept(path) as folder:
        model = train_tokenizer(
            images.train, config, threads=THREADS, folder=folder, progress=lambda *at: progress("tokenizer", *at)
        )
        metrics = describe_tokenizer(model, images.test)
        _save(path, ["tokenizer"], _state(model), config=asdict(config), channels=images.channels, metrics=metrics)


def make_codes(path: Path, images: Images, tokenizer: str, given: bool, progress: Progress) -> None:
    """Encode both splits; the codebook is kept beside the tokens, and what a `given` tokenizer is measured by."""
    torch.set_num_threads(THREADS)
    progress("encoding images", 0, 1, "")
    model = load_tokenizer(tokenizer)
    codebook = codebook_of(model)
    with _kept(path) as folder:
        arrays = {
            "train_tokens": encode_images(model, images.train, kept=Kept(folder / "train.safetensors")),
            "train_labels": images.train_labels,
            "test_tokens": encode_images(model, images.test, kept=Kept(folder / "test.safetensors")),
            "test_labels": images.test_labels,
            "codebook": codebook.vectors,
        }
        measured = {"metrics": describe_tokenizer(model, images.test)} if given else {}
        _save(path, ["codes"], arrays, class_names=images.class_names, **measured, **_rule(codebook))
    progress("encoding images", 1, 1, "")


def make_use(path: Path, found: Encoded, progress: Progress) -> None:
    """Count how often training images use each code; the header holds usage and perplexity, as of a tokenizer."""
    tokens = found.train.codes
    codebook, images = found.codebook, max(1, COUNTED_AT_ONCE // math.prod(tokens.shape[1:]))
    use = np.zeros(len(codebook.vectors), np.int64)
    for first in range(0, len(tokens), images):
        use += codebook.use(tokens[first : first + images])
        progress("counting codes", min(first + images, len(tokens)), len(tokens), "")
    share = use[use > 0] / use.sum()
    metrics = {"usage": float(np.mean(use > 0)), "perplexity": float(np.exp(-np.sum(share * np.log(share))))}
    _save(path, (), {"use": use, "codebook": codebook.vectors}, metrics=metrics, **_rule(codebook))


def make_evaluators(path: Path, images: Images, config: ClassifierConfig, progress: Progress) -> None:
    """Train the classifiers and take the components; the header holds the classifiers' accuracies on held-out images.

    A classifier that is trained is kept until all are, and one that is begun goes on.
    """
    sizes = (images.channels, len(images.class_names))
    with _kept(path) as folder:
        trained = []
        for k in range(CLASSIFIERS):
            finished = folder / f"classifier-{k}.safetensors"
            if not finished.exists():
                model = train_classifier(
                    images.train,
                    images.train_labels,
                    len(images.class_names),
                    replace(config, seed=CLASSIFIERS * config.seed + k),
                    threads=THREADS,
                    folder=folder / f"classifier-{k}",
                    progress=partial(progress, f"classifier {k + 1} of {CLASSIFIERS}"),
                )
                save_arrays(finished, weights_of(model))
            trained.append(load_arrays(finished)[0])
        models = [classifier_of(weights, config, *sizes) for weights in trained]
        accuracies = [float((classify(model, images.test)[1] == images.test_labels).mean()) for model in models]
        _save(
            path,
            EVALUATORS,
            packed(trained, principal_components(images.train)),
            images=images.digest,
            versions=versions(EVALUATORS),
            config=asdict(config),
            channels=images.channels,
            classes=len(images.class_names),
            accuracies=accuracies,
        )


def make_reference(
    path: Path,
    images: Images,
    tokenizer: str,
    codes: Codes,
    product: Path,
    judging: Path,
    config: TrialConfig,
    count: int,
    progress: Progress,
) -> None:
    """Measure the held-out images and their reconstructions; as the floor for any sample, those of `count` images.

    product : the evaluators.
    """
    torch.set_num_threads(THREADS)
    progress("reference", 0, 1, "")
    model, arranged = load_tokenizer(tokenizer), Rearrangement.load(judging)
    pictures = decode_tokens(model, codes.test_tokens)
    evaluators = load_evaluators(product)
    reference = References.of(extractors_of(config, evaluators), images.test, pictures)
    moved = torch.from_numpy(arranged.rows(codes.codebook.vectors))
    rearranged = decode_tokens(model, arranged.tokens(codes.test_tokens[:10]), moved)
    floor = measure_pictures(pictures[:count], images.test_labels[:count], reference, evaluators, config)
    _save(
        path,
        ["samples' metrics"],
        {
            **reference.arrays(),
            "originals": images.test[:10],
            "decoded": pictures[:10],
            "rearranged": rearranged,
        },
        metrics=floor,
    )
    progress("reference", 1, 1, "")


def make_given_reference(
    path: Path, pictures: PictureSet, extractor: Extractor, device: str, progress: Progress
) -> None:
    """Look at pictures that were given, a part at a time, for samples to be measured against."""
    with _kept(path) as folder:
        parts, each = FeatureParts(folder), parts_of(pictures.count)
        for number, (first, end) in enumerate(each):
            progress("reference", first, pictures.count, pictures.source)
            if not parts.has(number):
                # A part is whole batches of every extractor here: else its last batch would reach into the next part.
                some = islice(pictures.batches(extractor.batch, first), -(-(end - first) // extractor.batch))
                batches = (with_channels(images, 3) for images in some)
                parts.save(number, extract_all(extractor, batches, end - first))
        seen = parts.joined(range(len(each)))
        moments = (pictures.statistics, pictures.spatial_statistics)
        # The moments of an ADM file are of Inception's features: another extractor takes its own, of the pictures.
        given = moments if extractor.name == "inception" else (None, None)
        reference = reference_of(seen, pictures.source, *given, device="cuda" if device == "cuda" else None)
        arrays = reference.arrays(lambda what, *at: progress(f"reference, {what}", *at))
        _save(path, ["samples' metrics"], arrays, metrics=None, source=pictures.source)
    progress("reference", pictures.count, pictures.count, "")


def make_exactness(path: Path, codes: Codes, tokenizer: str, judging: Path) -> None:
    """See that rearrangement alone changes neither a loss nor a picture."""
    torch.set_num_threads(THREADS)
    tokens, labels = codes.test_tokens[:EXACT_IMAGES], codes.test_labels[:EXACT_IMAGES]
    arranged = Rearrangement.load(judging)
    gaps = {
        "equivariance": equivariance_gap(tokens, labels, len(codes.class_names), arranged),
        "decoding": decoding_gap(load_tokenizer(tokenizer), tokens, arranged),
    }
    _save(path, (), {"gaps": np.array(list(gaps.values()))}, gaps=gaps)


def make_clustering(path: Path, codebook: Codebook, config: ClusteringConfig, progress: Progress) -> None:
    """Cluster and rearrange the codes."""
    what = f"clustering ({config.strategy}, {config.n_clusters})"
    if config.strategy == "none":
        arranged = Rearrangement.identity(len(codebook.vectors))
    else:
        labels = cluster_codes(
            codebook.vectors,
            config.strategy,
            config.n_clusters,
            config.seed,
            codebook.lookup,
            progress=lambda *at: progress(what, *at),
        )
        arranged = Rearrangement.from_labels(labels, codebook.points, within=config.within, between=config.between)
    arrays = {"permutation": arranged.permutation, "boundaries": arranged.boundaries}
    _save(path, makers_of_clustering(config), arrays, config=asdict(config))


def decode(shared: Shared, tokens: np.ndarray, device: str) -> np.ndarray:
    """Return the pictures, uint8 (n, h, w, c), of tokens, int (n, T), in the codebook's original order."""
    return np.concatenate(list(decoded(load_tokenizer(shared.tokenizer).to(device), tokens)))


def facts(shared: Shared) -> dict[str, Any]:
    """Return what a reader wants to know of the products.

    `tokenizer` : psnr, usage and perplexity on held-out images, or usage and perplexity of the training images where
    these came encoded. `classifier_accuracy`, the mean over the classifiers, and `reconstruction`, the samples' metrics
    measured on reconstructions: None there. `exact` : what `evaluation.exactness` found, `equivariance` and `decoding`.
    """
    measured = shared.codes if shared.given else Path(shared.tokenizer)
    floor = load_metadata(shared.reference) if shared.reference else None
    accuracies = load_metadata(shared.evaluators)["accuracies"] if shared.evaluators else None
    return {
        "tokenizer": load_arrays(measured)[1]["metrics"],
        "classifier_accuracy": accuracies and float(np.mean(accuracies)),
        "reconstruction": floor and floor["metrics"],
        "exact": load_arrays(shared.exactness)[1]["gaps"],
    }
