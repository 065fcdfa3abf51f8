"""What trials share: tokenizer, codes, evaluators, reference and clusterings, each computed once.

Every stage is a pure function of its config and of what the stages before it made; its product is one safetensors
file in the workspace's cache, named by a digest of just that. So a changed setting or image makes a new product, and
nothing is ever stale. What a product is made from, and what it is called, is told here; `making` makes it. Of some
data sets the package ships the evaluators, as if they lay in the cache: their bits are then the same on every machine.

Images that are encoded already (`codes:PATH`) come with their tokenizer and without pixels: nothing is trained, there
is nothing to compare samples with, and their codes are read from where they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from iar_study import evaluation
from iar_study.config import (
    ClassifierConfig,
    ClusteringConfig,
    DataConfig,
    TrialConfig,
    check_patches,
    is_encoded,
    part_identity,
)
from iar_study.data.codes import Codes
from iar_study.data.images import Images, load_images
from iar_study.data.llamagen_codes import CODES, open_splits
from iar_study.data.picture_sets import PictureSet, open_reference
from iar_study.errors import InputError
from iar_study.parts import changed, sources, versions
from iar_study.pipeline.encoded import Encoded, check_encoded, check_given, encoded_of
from iar_study.pipeline.workspace import Workspace
from iar_study.storage import digest, load_arrays, load_metadata, replacing

if TYPE_CHECKING:
    from iar_study.codebook import Codebook

# What makes products brings torch and more, which take seconds: it is imported where one is to be made, so that
# nobody waits for it where all is there.

RECIPE = 4
"""Of all that is made at once; each maker has a version of its own, see `makers`."""

THREADS = 1
"""CPU threads of a shared stage: fixed, because the bits of a sum depend on it; more do not pay at these sizes."""

EVALUATORS = ("evaluators",)
"""Who makes a set of evaluators."""

SHIPPED = Path(evaluation.__file__).parent / "fixed"
"""The folder of the package with sets of evaluators that were made once, by `shipping`."""

EXACT_IMAGES = 16
"""Held-out images on which it is seen that rearrangement alone changes nothing."""

FEWEST = 5
"""Images of a given reference must be more, for the nearest others that density and coverage look at."""

Progress = Callable[[str, int, int, str], None]
"""(what, steps done, steps in all, detail) is called as a stage goes on."""


@dataclass(frozen=True)
class Shared:
    """The files that a trial needs, and the digests of their content."""

    data: dict[str, Any]
    """name, digest, image size, channels, counts of the images."""
    tokenizer: str
    """A product's path; or what was given: a path elsewhere, or a part of one's own."""
    codes: Path
    """Tokens and codebook; of images that are encoded already, the use of the codes and the codebook."""
    evaluators: Path | None
    """None where there are no images."""
    reference: Path | None
    """None where there are no images, and no pictures were given."""
    rearrangement: Path
    judging: Path
    exactness: Path
    digests: dict[str, str]
    given: bool = False
    """Whether the tokenizer was given, and not trained here."""
    folder: Path | None = None
    """Of images that are encoded already: where their codes are."""

    @property
    def products(self) -> list[str]:
        """Names of the files of these that lie in the workspace's cache."""
        made = (self.codes, self.evaluators, self.reference, self.rearrangement, self.judging, self.exactness)
        own = made if self.given else (Path(self.tokenizer), *made)
        return [path.name for path in own if path]


@lru_cache(maxsize=2)
def images_of(config: DataConfig) -> Images:
    """Load images once per process."""
    return load_images(config)


def given_pictures(config: TrialConfig) -> PictureSet:
    """Open the pictures that samples of encoded images are measured against, once per process and file.

    Raises `InputError` where they are damaged or of another size than the samples.
    """
    how = config.evaluation
    found, path = encoded_of(config.data.name, config.tokenizer.checkpoint), Path(str(how.reference)).expanduser()
    stat = path.stat() if path.exists() else None
    return _given_pictures(path.absolute(), how.image_size or found.grid * found.patch, stat and stat.st_mtime_ns)


@lru_cache(maxsize=1)
def _given_pictures(path: Path, side: int, version: int | None) -> PictureSet:
    pictures = open_reference(path, side)
    if pictures.count <= FEWEST:
        raise InputError(f"{path} holds {pictures.count} images; a reference needs more than {FEWEST}")
    return pictures


def check(config: TrialConfig, load: bool = True) -> None:
    """Raise `InputError` for settings that do not fit the data or this machine, before anything is trained.

    What is known without looking at either, `checks.check_settings` says.

    load : whether the extractor's weights are loaded too, which may fetch them.
    """
    if is_encoded(config.data):
        check_encoded(config)
        if config.evaluation.reference:
            given_pictures(config)
    else:
        check_images(config, images_of(config.data))
    measured = not is_encoded(config.data) or config.evaluation.reference
    if load and measured and config.evaluation.extractor != "set":
        from iar_study.pipeline.measuring import load_network

        load_network(config.evaluation.extractor, "cpu")  # its weights should be here before anything is trained
    torch = find_spec("torch")
    where = str(torch.origin) if torch else ""
    if config.compute.compile and config.compute.device == "cpu" and " " in where:
        raise InputError(
            f"compute.compile = true, but torch's compiler cannot link below a folder with a space in its name: "
            f"{where}; make the environment elsewhere, or leave it out"
        )
    if config.compute.device == "cuda":
        from torch import cuda

        if not cuda.is_available():
            raise InputError(
                "compute.device = cuda, but torch finds no GPU here; `iar-study doctor` says what it finds"
            )


def check_images(config: TrialConfig, images: Images) -> None:
    """Raise `InputError` for a tokenizer that does not fit the images."""
    patch, side = config.tokenizer.patch, images.size
    if config.tokenizer.checkpoint is not None:
        _, codebook, patch, channels = given_tokenizer(config.tokenizer.checkpoint)
        check_given(config, codebook, patch)
        if channels != images.channels:
            raise InputError(
                f"{config.tokenizer.checkpoint} is for {channels} channels, {images.name} has {images.channels}"
            )
    check_patches(side, patch)


def prepare(config: TrialConfig, workspace: Workspace, progress: Progress) -> Shared:
    """Compute, or find in the cache, all that the trial of `config` needs before its own training."""
    return stages_of(config, workspace, progress).shared()


class NotMade(Exception):
    """A product is not in the cache of a workspace in which nothing is to be made."""

    def __init__(self, kind: str, path: Path | None = None) -> None:
        super().__init__(f"{kind} is not made")
        self.kind, self.path = kind, path


class Stages:
    """What the trial of `config` shares with others; each product is made, or found in the cache, when asked for.

    In a frozen workspace a product that is not there, or whose making waits for such a one, raises `NotMade`.
    """

    made: ClassVar[dict[str, str]]

    def __init__(self, config: TrialConfig, workspace: Workspace, progress: Progress) -> None:
        self.config, self.workspace, self.progress = config, workspace, progress

    @property
    def products(self) -> dict[str, str]:
        """The attributes that are products, in the order that they are made in -> their kind."""
        return self.made

    @property
    def codebook(self) -> Codebook:
        """The codes, with the rule by which they are looked up."""
        raise NotImplementedError

    @cached_property
    def rearrangement(self) -> Path:
        """The arm's own clustering."""
        return self._clustering(self.config.clustering)

    @cached_property
    def judging(self) -> Path:
        """The clustering that every arm is judged by."""
        return self._clustering(ClusteringConfig("balanced", self.config.evaluation.clusters))

    def _clustering(self, config: ClusteringConfig) -> Path:
        if config.strategy == "none":  # no clusters have no order either
            config = replace(config, n_clusters=1, within="none", between="none")
        # An order that is none goes without a name: clusterings from before there were any are found.
        given = {key: part_identity(f"clustering.{key}", value) for key, value in asdict(config).items()}
        made_of = {key: value for key, value in given.items() if key == "strategy" or value != "none"}
        codebook = self.codebook
        # By cosine the rule goes without a name: clusterings from before there was another are found.
        rule = [codebook.lookup] if codebook.lookup != "cosine" else []
        makers = makers_of_clustering(config)
        path = _product(self.workspace, "clustering", makers, digest(codebook.vectors), made_of, *rule)
        if not path.exists():
            from iar_study.pipeline.making import make_clustering

            make_clustering(path, codebook, config, self.progress)
        return path

    def _exactness(self, codes: Codes, tokenizer: str, codes_digest: str, given: str = "") -> Path:
        """Return the product; `given`: the digest of a tokenizer that was given, whose codes another may have."""
        key = (codes_digest, _digest(self.judging), EXACT_IMAGES, *([given] if given else []))
        path = _product(self.workspace, "exactness", (), *key)
        if not path.exists():
            from iar_study.pipeline.making import make_exactness

            make_exactness(path, codes, tokenizer, self.judging)
        return path

    def shared(self) -> Shared:
        """Return all products, made. In a frozen workspace those that do not tell trials apart may be missing."""
        raise NotImplementedError

    def _paths(self) -> dict[str, Path]:
        return {name: self._path(name) for name in self.products}

    def _path(self, name: str) -> Path:
        try:
            return getattr(self, name)
        except NotMade as missing:
            return missing.path or Path()


class _OfImages(Stages):
    """The images are here; the tokenizer is trained on them, or given."""

    made: ClassVar[dict[str, str]] = {
        "tokenizer": "tokenizer",
        "codes": "codes",
        "evaluators": "evaluators",
        "rearrangement": "clustering",
        "judging": "clustering",
        "reference": "reference",
        "exactness": "exactness",
    }

    @property
    def images(self) -> Images:
        return images_of(self.config.data)

    @cached_property
    def tokenizer(self) -> Path | None:
        """What is trained; None of what is given."""
        config = self.config.tokenizer
        if config.checkpoint is not None:
            return None
        path = _product(self.workspace, "tokenizer", ["tokenizer"], self.images.digest, asdict(config))
        if not path.exists():
            from iar_study.pipeline.making import make_tokenizer

            make_tokenizer(path, self.images, config, self.progress)
        return path

    @property
    def decoder(self) -> str:
        """What `load_tokenizer` takes."""
        return str(self.tokenizer or self.config.tokenizer.checkpoint)

    @cached_property
    def tokenizer_digest(self) -> str:
        return _digest(self.tokenizer) if self.tokenizer else given_tokenizer(self.decoder)[0]

    @cached_property
    def codes(self) -> Path:
        path = _product(self.workspace, "codes", ["codes"], self.images.digest, self.tokenizer_digest)
        if not path.exists():
            from iar_study.pipeline.making import make_codes

            make_codes(path, self.images, self.decoder, self.tokenizer is None, self.progress)
        return path

    @cached_property
    def evaluators(self) -> Path:
        return evaluators_product(self.images, self.config.classifier, self.workspace, self.progress)

    @cached_property
    def loaded(self) -> Codes:
        return codes_of(self.codes)

    @property
    def codebook(self) -> Codebook:
        return self.loaded.codebook

    @cached_property
    def reference(self) -> Path:
        extractor, images = self.config.evaluation.extractor, self.images
        name, identity = "set", None
        if extractor != "set":
            if self.workspace.frozen:
                raise NotMade("extractor")  # what it sees is known when it is loaded, and its weights might be fetched
            from iar_study.pipeline.measuring import load_network

            network = load_network(extractor, self.config.compute.device)
            name, identity = network.name, network.identity
        made_from = [self.tokenizer_digest, _digest(self.evaluators), _digest(self.judging)]
        count = min(self.config.evaluation.samples, len(images.test))
        own = part_identity("evaluation.metrics", self.config.evaluation.metrics)
        key = (images.digest, made_from, name, identity, count, *([own] if own else []))
        path = _product(self.workspace, "reference", ["samples' metrics"], *key)
        if not path.exists():
            from iar_study.pipeline.making import make_reference

            parts = (self.decoder, self.loaded, self.evaluators, self.judging)
            make_reference(path, images, *parts, self.config, count, self.progress)
        return path

    @cached_property
    def exactness(self) -> Path:
        given = "" if self.tokenizer else self.tokenizer_digest
        return self._exactness(self.loaded, self.decoder, _digest(self.codes), given)

    def shared(self) -> Shared:
        images, paths = self.images, self._paths()
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
        telling = ("codes", "evaluators", "rearrangement", "judging")
        digests = {"data": images.digest, "tokenizer": self.tokenizer_digest}
        digests |= {name: _digest(getattr(self, name)) for name in telling}
        del paths["tokenizer"]
        return Shared(data, self.decoder, **paths, digests=digests, given=self.tokenizer is None)


class _OfCodes(Stages):
    """The tokenizer and the codes are there."""

    made: ClassVar[dict[str, str]] = {
        "codes": "use",
        "rearrangement": "clustering",
        "judging": "clustering",
        "exactness": "exactness",
    }

    @property
    def products(self) -> dict[str, str]:
        return self.made | ({"reference": "reference"} if self.config.evaluation.reference else {})

    @property
    def found(self) -> Encoded:
        return encoded_of(self.config.data.name, self.config.tokenizer.checkpoint)

    @cached_property
    def reference(self) -> Path:
        """What samples are measured against, where the settings name one."""
        extractor, device = self.config.evaluation.extractor, self.config.compute.device
        if self.workspace.frozen:
            raise NotMade("extractor")  # as of images
        from iar_study.pipeline.measuring import load_network

        network, pictures = load_network(extractor, device), given_pictures(self.config)
        key = (pictures.digest, network.name, network.identity)
        path = _product(self.workspace, "reference", ["samples' metrics"], *key)
        if not path.exists():
            from iar_study.pipeline.making import make_given_reference

            make_given_reference(path, pictures, network, device, self.progress)
        return path

    @cached_property
    def codes(self) -> Path:
        found = self.found
        path = _product(self.workspace, "use", (), found.train.index[CODES]["sha256"], found.tokenizer_digest)
        if not path.exists():
            from iar_study.pipeline.making import make_use

            make_use(path, found, self.progress)
        return path

    @property
    def codebook(self) -> Codebook:
        return self.found.codebook

    @cached_property
    def exactness(self) -> Path:
        found = self.found
        some = Codes(
            found.train.codes,
            np.array(found.train.labels[:0]),
            found.test.codes[:EXACT_IMAGES, 0],
            np.array(found.test.labels[:EXACT_IMAGES]),
            found.class_names,
            found.codebook,
        )
        return self._exactness(some, found.tokenizer, found.digest)

    def shared(self) -> Shared:
        found, paths = self.found, self._paths()
        images, augmentations, _ = found.train.codes.shape
        data = {
            "name": self.config.data.name,
            "digest": found.digest,
            "image_size": found.grid * found.patch,
            "channels": found.channels,
            "train_images": images,
            "augmentations": augmentations,
            "test_images": len(found.test.codes),
            "classes": len(found.class_names),
            "class_names": found.class_names,
        }
        digests = {
            "codes": found.digest,
            "tokenizer": found.tokenizer_digest,
            "rearrangement": _digest(self.rearrangement),
            "judging": _digest(self.judging),
        }
        reference = paths.get("reference")
        if reference is not None:
            digests["reference"] = given_pictures(self.config).digest
        return Shared(
            data,
            found.tokenizer,
            paths["codes"],
            None,
            reference,
            paths["rearrangement"],
            paths["judging"],
            paths["exactness"],
            digests,
            given=True,
            folder=found.folder,
        )


def stages_of(config: TrialConfig, workspace: Workspace, progress: Progress) -> Stages:
    """Return the stages of a trial; nothing is made yet."""
    kind = _OfCodes if is_encoded(config.data) else _OfImages
    return kind(config, workspace, progress)


def _digest(product: Path) -> str:
    return load_metadata(product)["digest"]


def makers_of_clustering(config: ClusteringConfig) -> list[str]:
    """Return who makes a clustering and, where there are some, its orders."""
    orders = dict.fromkeys(order for order in (config.within, config.between) if order != "none")
    return [f"clustering {config.strategy}", *(f"order {order}" for order in orders)]


def _product(workspace: Workspace, kind: str, makers: Sequence[str], *key: Any) -> Path:
    """Return where the product that these make from `key` lies; raise `NotMade` where it may not be made and is not.

    What is made again since its makers' source changed has a name of its own, in which that source is.
    """
    # 64 bits of the digest: among a million products, two share a name with a chance of 3e-8.
    plain = f"{kind}-{digest(RECIPE, THREADS, kind, *key, *versions(makers))[:16]}"
    path = workspace.cache / f"{workspace.name(plain)}.safetensors"
    if workspace.again and path.exists() and changed(load_metadata(path).get("makers", {})):
        name = f"{kind}-{digest(plain, sources(makers))[:16]}"
        path = workspace.cache / f"{name}.safetensors"
        if not workspace.frozen:
            workspace.rename(plain, name)
    if workspace.frozen and not path.exists():
        raise NotMade(kind, path)
    return path


def evaluators_product(images: Images, config: ClassifierConfig, workspace: Workspace, progress: Progress) -> Path:
    """Return the set of evaluators of a set of images: found in the cache, else shipped with the package, else made."""
    try:
        path = _product(workspace, "evaluators", EVALUATORS, images.digest, asdict(config))
    except NotMade:
        if file := shipped(images.digest, config):
            return file
        raise
    if not path.exists():
        if file := shipped(images.digest, config):
            with replacing(path) as temporary:
                shutil.copyfile(file, temporary)
        else:
            from iar_study.pipeline.making import make_evaluators

            make_evaluators(path, images, config, progress)
    return path


def shipped(images: str, config: ClassifierConfig) -> Path | None:
    """Return the file of the package that these makers would make from images of this digest; None where there is none.

    It tells no source of its makers: these bits are to stay as they are, whatever else is edited.
    """
    wanted = {"images": images, "config": asdict(config), "recipe": RECIPE}
    wanted["versions"] = [list(each) for each in versions(EVALUATORS)]
    for file in sorted(SHIPPED.glob("*.safetensors")):
        about = load_metadata(file)
        if {key: about[key] for key in wanted} == wanted:
            return file
    return None


def load_codes(shared: Shared) -> Codes:
    """Return the tokens; those of images that are encoded already stay on the disk until they are indexed."""
    if shared.folder is not None:
        train, test = open_splits(shared.folder).values()
        labels = {"train_labels": np.array(train.labels), "test_labels": np.array(test.labels)}
        tokens = {"train_tokens": train.codes, "test_tokens": test.codes[:, 0]}
        names = tuple(shared.data["class_names"])
        return Codes(**tokens, **labels, class_names=names, codebook=load_codebook(shared.codes))
    return codes_of(shared.codes)


def codes_of(path: Path) -> Codes:
    """Return the tokens and the codebook of a product `codes`."""
    arrays, metadata = load_arrays(path)
    codebook = _codebook(arrays, metadata, path.name)
    del arrays["codebook"]
    arrays["train_tokens"] = arrays["train_tokens"][:, None]  # one augmentation
    return Codes(**arrays, class_names=tuple(metadata["class_names"]), codebook=codebook)


def load_codebook(product: Path) -> Codebook:
    """Return the codebook of a product `codes` or `use`."""
    return _codebook(*load_arrays(product), product.name)


def _codebook(arrays: dict[str, np.ndarray], metadata: dict[str, Any], source: str) -> Codebook:
    from iar_study.codebook import Codebook

    return Codebook(arrays["codebook"], metadata.get("lookup", "cosine"), source)


def given_tokenizer(spec: str) -> tuple[str, Codebook, int, int]:
    """Return the digest, codebook, patch and channels of a given tokenizer, loaded once per process and file."""
    path = Path(spec).expanduser().absolute()
    stat = path.stat() if path.is_file() else None
    return _given_tokenizer(spec, Path.cwd(), stat and (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=2)
def _given_tokenizer(spec: str, folder: Path, version: tuple[int, int] | None) -> tuple[str, Codebook, int, int]:
    from iar_study.tokenizers.given import codebook_of, load_tokenizer, tokenizer_digest  # here: it brings torch

    tokenizer = load_tokenizer(spec)
    return tokenizer_digest(tokenizer), codebook_of(tokenizer), tokenizer.patch, tokenizer.in_channels
