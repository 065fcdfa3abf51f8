"""What trials share: tokenizer, codes, classifier, reference and clusterings, each computed once.

Every stage is a pure function of its config and of what the stages before it made; its product is one safetensors
file in the workspace's cache, named by a digest of just that. So a changed setting or image makes a new product, and
nothing is ever stale.

Images that are encoded already (`codes:PATH`) come with their tokenizer and without pixels: nothing is trained, there
is nothing to compare samples with, and their codes are read from where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iar_study.codebook import EQUAL_SIZES, Codebook, Rearrangement, cluster_codes
from iar_study.config import (
    ClassifierConfig,
    ClusteringConfig,
    DataConfig,
    TokenizerConfig,
    TrialConfig,
)
from iar_study.data.codes import Codes
from iar_study.data.encoding import load_tokenizer, open_splits, tokenizer_digest
from iar_study.data.images import Images, load_images
from iar_study.data.llamagen_codes import CODES, LABELS, ExtractedCodes
from iar_study.errors import InputError
from iar_study.evaluation.classifier import Classifier, classify, train_classifier
from iar_study.evaluation.exactness import decoding_gap, equivariance_gap
from iar_study.evaluation.features import Extractor, extract, load_extractor
from iar_study.evaluation.fidelity import Reference, measure_fidelity
from iar_study.evaluation.metrics import fidelity_key
from iar_study.models.patch_vq import PatchVQ
from iar_study.models.vq import to_uint8
from iar_study.storage import digest, load_arrays, save_arrays
from iar_study.study.workspace import Workspace
from iar_study.training.tokenizer import decode_tokens, describe_tokenizer, encode_images, train_tokenizer

RECIPE = 4
"""Raise it when a change of code makes the same config give other numbers: caches and trials made before are left."""

THREADS = 1
"""CPU threads of a shared stage: fixed, because the bits of a sum depend on it; more do not pay at these sizes."""

COUNTED_AT_ONCE = 2**22
"""Tokens that are read at a time to count them: 32 MB."""

REFERENCE = "reference."
"""What the names of a reference's arrays begin with, beside the pictures that are kept with them."""

EXACT_IMAGES = 16
"""Held-out images on which it is seen that rearrangement alone changes nothing."""

DECODED_AT_ONCE = 2**20
"""Pixels that are decoded at a time: 16 pictures of 256 x 256, of which VQ-16 needs some GB."""

Progress = Callable[[str, int, int, str], None]
"""(what, steps done, steps in all, detail) is called as a stage goes on."""


@dataclass(frozen=True)
class Shared:
    """The files that a trial needs, and the digests of their content."""

    data: dict[str, Any]
    """name, digest, image size, channels, counts of the images."""
    tokenizer: Path
    codes: Path
    """Tokens and codebook; of images that are encoded already, the use of the codes and the codebook."""
    classifier: Path | None
    reference: Path | None
    """None, as the classifier, where there are no images."""
    rearrangement: Path
    judging: Path
    exactness: Path
    digests: dict[str, str]
    folder: Path | None = None
    """Of images that are encoded already: where their codes are."""


@lru_cache(maxsize=2)
def images_of(config: DataConfig) -> Images:
    """Load images once per process."""
    return load_images(config)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images that are encoded already, and what is needed of the tokenizer that made their codes."""

    folder: Path
    train: ExtractedCodes
    test: ExtractedCodes
    tokenizer: Path
    tokenizer_digest: str
    codebook: np.ndarray
    patch: int
    channels: int

    @property
    def grid(self) -> int:
        """Tokens along one side of a picture, rounded down where they form no square."""
        return math.isqrt(self.train.codes.shape[2])

    @property
    def class_names(self) -> tuple[str, ...]:
        index = self.test.index | self.train.index
        return tuple(index.get("class_names") or (f"class {k}" for k in range(index["classes"])))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content, by the checksums of the indices: the codes themselves are not read."""
        checksums = [split.index[part]["sha256"] for split in (self.train, self.test) for part in (CODES, LABELS)]
        return digest(checksums, self.class_names)


def is_encoded(config: DataConfig) -> bool:
    """Whether the data are images that are encoded already: `codes:PATH`."""
    kind, _, path = config.name.partition(":")
    return kind == "codes" and path != ""


@lru_cache(maxsize=2)
def encoded_of(name: str, checkpoint: str | None) -> Encoded:
    """Open the codes of `codes:PATH` and their tokenizer once per process."""
    folder = Path(name.removeprefix("codes:")).expanduser().absolute()
    splits = open_splits(folder)
    if checkpoint is None:
        raise InputError(f"{name} needs the tokenizer that made the codes: --set tokenizer.checkpoint=FILE")
    path = Path(checkpoint).expanduser().absolute()
    tokenizer = load_tokenizer(path)
    return Encoded(
        folder,
        **splits,
        tokenizer=path,
        tokenizer_digest=tokenizer_digest(tokenizer),
        codebook=tokenizer.codebook().numpy(),
        patch=tokenizer.patch,
        channels=tokenizer.in_channels,
    )


def check(config: TrialConfig) -> None:
    """Raise `InputError` for settings that do not fit each other or the data, before anything is trained."""
    if is_encoded(config.data):
        _check_encoded(config)
    else:
        _check_images(config)
    size = config.tokenizer.codebook_size
    wanted = {"evaluation.clusters": config.evaluation.clusters}
    if config.clustering.strategy in EQUAL_SIZES:
        wanted["clustering.n_clusters"] = config.clustering.n_clusters
    for key, n_clusters in wanted.items():
        if size % n_clusters:
            raise InputError(
                f"equal clusters: {key} = {n_clusters} does not divide the {size} codes of tokenizer.codebook_size"
            )
    if config.clustering.strategy != "none" and config.clustering.n_clusters > size:
        raise InputError(f"clustering.n_clusters = {config.clustering.n_clusters} exceeds the {size} codes")
    if config.evaluation.extractor != "classifier":
        _network(config.evaluation.extractor, "cpu")  # its weights should be here before anything is trained
    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device = cuda, but torch finds no GPU here; `iar-study doctor` says what it finds")


def _check_images(config: TrialConfig) -> None:
    if config.tokenizer.checkpoint is not None:
        raise InputError(f"tokenizer.checkpoint is for data codes:PATH only; for {config.data.name}, one is trained")
    images, patch = images_of(config.data), config.tokenizer.patch
    if images.size % patch:
        raise InputError(
            f"images of {images.size} x {images.size} pixels do not divide into patches of {patch}: "
            f"choose another tokenizer.patch or data.image_size"
        )
    if images.size // patch < 2:
        raise InputError(
            f"images of {images.size} x {images.size} pixels are a single patch of {patch}: "
            f"nothing is left to predict; choose a smaller tokenizer.patch"
        )


def _check_encoded(config: TrialConfig) -> None:
    found = encoded_of(config.data.name, config.tokenizer.checkpoint)
    size, dim = found.codebook.shape
    wanted = {"codebook_size": size, "code_dim": dim, "patch": found.patch}
    for key, value in wanted.items():
        if (given := getattr(config.tokenizer, key)) != value:
            settings = " ".join(f"tokenizer.{name}={number}" for name, number in wanted.items())
            raise InputError(f"tokenizer.{key} is {given}, but {value} in {found.tokenizer}; --set {settings}")
    index = found.train.index
    if index["codebook_size"] != size:
        raise InputError(
            f"the codes in {found.folder} are of {index['codebook_size']} codes, but {found.tokenizer} has {size}; "
            f"name the tokenizer that made them"
        )
    for split in (found.train, found.test):
        if split.index.get("source", {}).get("tokenizer", found.tokenizer_digest) != found.tokenizer_digest:
            raise InputError(f"{found.tokenizer} is not the tokenizer that made the codes in {found.folder}")
    tokens, side = found.train.codes.shape[2], found.grid * found.patch
    if found.grid**2 != tokens or found.grid < 2:
        raise InputError(f"{tokens} tokens an image, in {found.folder}, do not form a square of 2 x 2 or more")
    if config.data.image_size not in (None, side):
        raise InputError(
            f"data.image_size = {config.data.image_size}, but the codes in {found.folder} are of images of {side}: "
            f"{found.grid} x {found.grid} tokens of {found.patch} x {found.patch} pixels; leave image_size out"
        )


def prepare(config: TrialConfig, workspace: Workspace, progress: Progress) -> Shared:
    """Compute, or find in the cache, all that the trial of `config` needs before its own training."""
    torch.set_num_threads(THREADS)
    if is_encoded(config.data):
        return _prepare_encoded(config, workspace, progress)
    return _prepare_images(config, workspace, progress)


def _prepare_encoded(config: TrialConfig, workspace: Workspace, progress: Progress) -> Shared:
    found = encoded_of(config.data.name, config.tokenizer.checkpoint)
    images, augmentations, _ = found.train.codes.shape
    data = {
        "name": config.data.name,
        "digest": found.digest,
        "image_size": found.grid * found.patch,
        "channels": found.channels,
        "train_images": images,
        "augmentations": augmentations,
        "test_images": len(found.test.codes),
        "classes": len(found.class_names),
        "class_names": found.class_names,
    }
    use = _use(found, workspace, progress)
    rearrangement, judging = _clusterings(found.codebook, config, workspace, progress)
    some = Codes(
        found.train.codes,
        np.array(found.train.labels[:0]),
        found.test.codes[:EXACT_IMAGES, 0],
        np.array(found.test.labels[:EXACT_IMAGES]),
        found.class_names,
        found.codebook,
    )
    exactness = _exactness(some, found.tokenizer, found.digest, judging, workspace)
    digests = {
        "codes": found.digest,
        "tokenizer": found.tokenizer_digest,
        "rearrangement": _digest(rearrangement),
        "judging": _digest(judging),
    }
    return Shared(data, found.tokenizer, use, None, None, rearrangement, judging, exactness, digests, found.folder)


def _prepare_images(config: TrialConfig, workspace: Workspace, progress: Progress) -> Shared:
    images = images_of(config.data)
    data = {
        "name": images.name,
        "digest": images.digest,
        "image_size": images.size,
        "channels": images.channels,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "classes": len(images.class_names),
        "class_names": images.class_names,
    }
    tokenizer = _tokenizer(images, config.tokenizer, workspace, progress)
    tokenizer_digest = _digest(tokenizer)
    codes = _codes(images, tokenizer, tokenizer_digest, workspace, progress)
    classifier = classifier_product(images, config.classifier, workspace, progress)
    loaded = _load_codes(codes)
    rearrangement, judging = _clusterings(loaded.codebook, config, workspace, progress)
    reference = _reference(images, tokenizer, loaded, classifier, judging, config, workspace, progress)
    exactness = _exactness(loaded, tokenizer, _digest(codes), judging, workspace)
    digests = {
        "data": images.digest,
        "tokenizer": tokenizer_digest,
        "codes": _digest(codes),
        "classifier": _digest(classifier),
        "rearrangement": _digest(rearrangement),
        "judging": _digest(judging),
    }
    return Shared(data, tokenizer, codes, classifier, reference, rearrangement, judging, exactness, digests)


def _digest(product: Path) -> str:
    return load_arrays(product)[1]["digest"]


def _product(workspace: Workspace, kind: str, *key: Any) -> Path:
    return workspace.cache / f"{kind}-{digest(RECIPE, THREADS, kind, *key)[:16]}.safetensors"


def _save(path: Path, arrays: dict[str, np.ndarray], **metadata: Any) -> None:
    content = digest(*(part for name in sorted(arrays) for part in (name, arrays[name])))
    save_arrays(path, arrays, {**metadata, "digest": content})


def _state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _restore(module: torch.nn.Module, arrays: dict[str, np.ndarray]) -> None:
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    module.eval()


def _tokenizer(images: Images, config: TokenizerConfig, workspace: Workspace, progress: Progress) -> Path:
    """Train the VQ autoencoder; its header holds PSNR on held-out images, codebook usage and perplexity."""
    path = _product(workspace, "tokenizer", images.digest, asdict(config))
    if not path.exists():
        model = train_tokenizer(images.train, config, threads=THREADS, progress=lambda *at: progress("tokenizer", *at))
        metrics = describe_tokenizer(model, images.test)
        _save(path, _state(model), config=asdict(config), channels=images.channels, metrics=metrics)
    return path


def _codes(images: Images, tokenizer: Path, tokenizer_digest: str, workspace: Workspace, progress: Progress) -> Path:
    """Encode both splits; the codebook is kept beside the tokens."""
    path = _product(workspace, "codes", images.digest, tokenizer_digest)
    if not path.exists():
        progress("encoding images", 0, 1, "")
        model = PatchVQ.load(tokenizer)
        arrays = {
            "train_tokens": encode_images(model, images.train),
            "train_labels": images.train_labels,
            "test_tokens": encode_images(model, images.test),
            "test_labels": images.test_labels,
            "codebook": model.codebook().detach().numpy(),
        }
        _save(path, arrays, class_names=images.class_names)
        progress("encoding images", 1, 1, "")
    return path


def _use(found: Encoded, workspace: Workspace, progress: Progress) -> Path:
    """Count how often training images use each code; the header holds usage and perplexity, as of a tokenizer."""
    tokens = found.train.codes
    path = _product(workspace, "use", found.train.index[CODES]["sha256"], found.tokenizer_digest)
    if not path.exists():
        codebook, images = Codebook(found.codebook, "cosine"), max(1, COUNTED_AT_ONCE // math.prod(tokens.shape[1:]))
        use = np.zeros(len(found.codebook), np.int64)
        for first in range(0, len(tokens), images):
            use += codebook.use(tokens[first : first + images])
            progress("counting codes", min(first + images, len(tokens)), len(tokens), "")
        share = use[use > 0] / use.sum()
        metrics = {"usage": float(np.mean(use > 0)), "perplexity": float(np.exp(-np.sum(share * np.log(share))))}
        _save(path, {"use": use, "codebook": found.codebook}, metrics=metrics)
    return path


def load_codes(shared: Shared) -> Codes:
    """Return the tokens; those of images that are encoded already stay on the disk until they are indexed."""
    if shared.folder is not None:
        train, test = open_splits(shared.folder).values()
        labels = {"train_labels": np.array(train.labels), "test_labels": np.array(test.labels)}
        tokens = {"train_tokens": train.codes, "test_tokens": test.codes[:, 0]}
        names = tuple(shared.data["class_names"])
        return Codes(**tokens, **labels, class_names=names, codebook=load_codebook(shared))
    return _load_codes(shared.codes)


def _load_codes(path: Path) -> Codes:
    arrays, metadata = load_arrays(path)
    arrays["train_tokens"] = arrays["train_tokens"][:, None]  # one augmentation
    return Codes(**arrays, class_names=tuple(metadata["class_names"]))


def load_codebook(shared: Shared) -> np.ndarray:
    """Return the codebook vectors, float32 (N, d)."""
    return load_arrays(shared.codes)[0]["codebook"]


def decode(shared: Shared, tokens: np.ndarray, device: str) -> np.ndarray:
    """Return the pictures, uint8 (n, h, w, c), of tokens, int (n, T), in the codebook's original order."""
    model = load_tokenizer(shared.tokenizer).to(device)
    grid = math.isqrt(tokens.shape[1])
    grids = torch.from_numpy(tokens.astype(np.int64)).view(-1, grid, grid)
    parts = grids.split(max(1, DECODED_AT_ONCE // (grid * model.patch) ** 2))
    return np.concatenate([to_uint8(model.decode_codes(part.to(device))) for part in parts])


def facts(shared: Shared) -> dict[str, Any]:
    """Return what a reader wants to know of the products.

    `tokenizer` : psnr, usage and perplexity on held-out images, or usage and perplexity of the training images where
    these came encoded. `classifier_accuracy` and `reconstruction`, the samples' metrics measured on reconstructions:
    None there. `exact` : what `evaluation.exactness` found, `equivariance` and `decoding`.
    """
    measured = shared.codes if shared.folder else shared.tokenizer
    floor = load_arrays(shared.reference)[1] if shared.reference else None
    return {
        "tokenizer": load_arrays(measured)[1]["metrics"],
        "classifier_accuracy": load_arrays(shared.classifier)[1]["accuracy"] if shared.classifier else None,
        "reconstruction": floor and floor["metrics"],
        "exact": load_arrays(shared.exactness)[1]["gaps"],
    }


def classifier_product(images: Images, config: ClassifierConfig, workspace: Workspace, progress: Progress) -> Path:
    """Train the classifier; its header holds its accuracy on held-out images."""
    path = _product(workspace, "classifier", images.digest, asdict(config))
    if not path.exists():
        model = train_classifier(
            images.train,
            images.train_labels,
            len(images.class_names),
            config,
            threads=THREADS,
            progress=lambda *at: progress("classifier", *at),
        )
        accuracy = float((classify(model, images.test)[1] == images.test_labels).mean())
        _save(
            path,
            _state(model),
            config=asdict(config),
            channels=images.channels,
            classes=len(images.class_names),
            accuracy=accuracy,
        )
    return path


def load_classifier(path: Path) -> Classifier:
    """Return the classifier of a cached product."""
    arrays, metadata = load_arrays(path)
    model = Classifier(ClassifierConfig(**metadata["config"]), metadata["channels"], metadata["classes"])
    _restore(model, arrays)
    return model


def extractor_of(config: TrialConfig, classifier: Path) -> Extractor:
    """Return the extractor that the config names, on its device; `classifier` is the study's own, on the CPU."""
    if config.evaluation.extractor == "classifier":
        return load_extractor("classifier", "cpu", load_classifier(classifier))
    return _network(config.evaluation.extractor, config.compute.device)


@lru_cache(maxsize=1)
def _network(extractor: str, device: str) -> Extractor:
    """Load a large network once per process."""
    return load_extractor(extractor, device)


def measure_pictures(
    pictures: np.ndarray, labels: np.ndarray, reference: Reference, extractor: Extractor, classifier: Path
) -> dict[str, float]:
    """Return the `family/extractor@count` metrics of uint8 pictures (n, h, w, c) of the classes `labels`, int (n,)."""
    count = len(pictures)
    features, probabilities = features_of(pictures, extractor)
    found = measure_fidelity(reference, features, probabilities, intervals=False)
    metrics = {fidelity_key(family, extractor.name, count): estimate.value for family, estimate in found.items()}
    if extractor.name == "classifier" and probabilities is not None:
        told = probabilities.argmax(1)
    else:
        told = classify(load_classifier(classifier), pictures)[1]
    return metrics | {fidelity_key("class_agreement", "classifier", count): float((told == labels).mean())}


def features_of(pictures: np.ndarray, extractor: Extractor) -> tuple[np.ndarray, np.ndarray | None]:
    """Return features, float32 (n, F), and class probabilities, float32 (n, K) or None, of uint8 (n, h, w, c)."""
    parts = (pictures[first : first + extractor.batch] for first in range(0, len(pictures), extractor.batch))
    return extract(extractor, parts, len(pictures))


def load_reference(path: Path) -> Reference:
    """Return what samples are measured against."""
    arrays, _ = load_arrays(path)
    return Reference.from_arrays(
        {name.removeprefix(REFERENCE): array for name, array in arrays.items() if name.startswith(REFERENCE)}
    )


def _reference(
    images: Images,
    tokenizer: Path,
    codes: Codes,
    classifier: Path,
    judging: Path,
    config: TrialConfig,
    workspace: Workspace,
    progress: Progress,
) -> Path:
    """Measure the held-out images themselves and, as the floor for any sample, their reconstructions."""
    made_from = [_digest(product) for product in (tokenizer, classifier, judging)]
    extractor, count = extractor_of(config, classifier), min(config.evaluation.samples, len(images.test))
    path = _product(workspace, "reference", images.digest, made_from, extractor.name, extractor.identity, count)
    if not path.exists():
        progress("reference", 0, 1, "")
        reference = Reference(features_of(images.test, extractor)[0])
        model, arranged = PatchVQ.load(tokenizer), load_rearrangement(judging)
        tokens = codes.test_tokens[:count]
        decoded = decode_tokens(model, tokens)
        rearranged = decode_tokens(model, arranged.tokens(tokens[:10]), torch.from_numpy(arranged.rows(codes.codebook)))
        _save(
            path,
            {
                **{REFERENCE + name: array for name, array in reference.arrays().items()},
                "originals": images.test[:10],
                "decoded": decoded[:10],
                "rearranged": rearranged,
            },
            metrics=measure_pictures(decoded, images.test_labels[:count], reference, extractor, classifier),
        )
        progress("reference", 1, 1, "")
    return path


def _exactness(codes: Codes, tokenizer: Path, codes_digest: str, judging: Path, workspace: Workspace) -> Path:
    """See that rearrangement alone changes neither a loss nor a picture."""
    path = _product(workspace, "exactness", codes_digest, _digest(judging), EXACT_IMAGES)
    if not path.exists():
        tokens, labels = codes.test_tokens[:EXACT_IMAGES], codes.test_labels[:EXACT_IMAGES]
        arranged = load_rearrangement(judging)
        gaps = {
            "equivariance": equivariance_gap(tokens, labels, len(codes.class_names), arranged),
            "decoding": decoding_gap(load_tokenizer(tokenizer), tokens, arranged),
        }
        _save(path, {"gaps": np.array(list(gaps.values()))}, gaps=gaps)
    return path


def _clusterings(
    codebook: np.ndarray, config: TrialConfig, workspace: Workspace, progress: Progress
) -> tuple[Path, Path]:
    """Return the arm's own clustering, and the one that every arm is judged by."""
    judges = ClusteringConfig("balanced", config.evaluation.clusters)
    own, judging = (_clustering(codebook, each, workspace, progress) for each in (config.clustering, judges))
    return own, judging


def _clustering(codebook: np.ndarray, config: ClusteringConfig, workspace: Workspace, progress: Progress) -> Path:
    """Cluster and rearrange the codes."""
    if config.strategy == "none":
        config = replace(config, n_clusters=1)
    path = _product(workspace, "clustering", digest(codebook), asdict(config))
    if not path.exists():
        what = f"clustering ({config.strategy}, {config.n_clusters})"
        if config.strategy == "none":
            arranged = Rearrangement.identity(len(codebook))
        else:
            labels = cluster_codes(
                codebook, config.strategy, config.n_clusters, config.seed, progress=lambda *at: progress(what, *at)
            )
            arranged = Rearrangement.from_labels(labels)
        _save(path, {"permutation": arranged.permutation, "boundaries": arranged.boundaries}, config=asdict(config))
    return path


def load_rearrangement(path: Path) -> Rearrangement:
    """Return the rearrangement of a cached clustering."""
    return Rearrangement.load(path)
