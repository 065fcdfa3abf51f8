"""The codebook of a study's tokenizer, for people: how similar its codes are, and what a picture owes to one of them.

Nothing is trained. All is computed from what the study has made (tokenizer, codes, clustering) and kept beside it as
one product, named by the content of these: beside the study's manifest and trials, that file alone is enough to load
the results again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iar_study.codebook import STRATEGIES, Codebook, Rearrangement
from iar_study.codebook.analysis import compare_strategies
from iar_study.codebook.clustering import comparable
from iar_study.codebook.norms import within_range
from iar_study.errors import InputError
from iar_study.evaluation.near_codes import nearest_codes, random_other_codes
from iar_study.pipeline.encoded import Encoded, encoded_of
from iar_study.pipeline.stages import THREADS, given_tokenizer, load_codebook
from iar_study.pipeline.workspace import Workspace, read_manifest, read_record
from iar_study.storage import digest, load_arrays, load_metadata, save_arrays
from iar_study.tokenizers.layout import side_in_tokens

KIND = "codebook"
"""What the product's name begins with."""

INPUTS = ("tokenizer", "codes", "judging")
"""What it is made from, as a trial calls it."""

RECIPE = 1
"""Raise it when a change of code makes the same inputs give another product."""

SHOWN_CODES = 12
"""Codes that are replaced in a picture."""

RANKS = (1, 2, 4, 8, 16, 64)
"""Code distances at which they are replaced, where there are so many codes."""

HELD_OUT = 2000
"""Held-out images among which the pictures are looked for: the first ones."""

PAIRS = 2**22
"""Pairs of codes whose similarity is looked at, at most: 32 MB."""

ROWS, RANKED = 4096, 512
"""Of a table: vectors (evenly spaced) that are looked at, and of these the ones whose neighbours are ranked."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Held-out images in which all tokens of one code were replaced by another code, decoded.

    Attributes
    ----------
    columns : in what way the code was replaced: "true tokens", "rank 1", ..., "same cluster", "random code".
    codes : int64 (k, columns), the code in each place, by its old index; the first column is the code itself.
    pictures : uint8 (k, columns, h, w, c).
    places : bool (k, grid, grid), where the code stands in the picture.
    images : int64 (k,), which held-out image it is.
    """

    columns: tuple[str, ...]
    codes: np.ndarray
    pictures: np.ndarray
    places: np.ndarray
    images: np.ndarray


@dataclass(frozen=True, eq=False)
class CodebookResults:
    """What there is to see of a codebook.

    Attributes
    ----------
    data : name of the data set.
    tokenizer, digest : file name of the tokenizer and SHA-256 (hex) of its weights.
    codebook : the codes as the tokenizer looks them up, float32 (N, d), and the rule by which it does.
    arranged : the balanced clustering that every arm of the study is judged by.
    use : int64 (N,), how many tokens of the training images each code has.
    strategies : `compare_strategies` at the same number of clusters, without the seconds.
    left_out : strategy that does not fit this codebook -> why.
    neighbours : None where the tokenizer or the held-out images' codes were not there.
    scale : label -> text: what the codebook is of, and how good the tokenizer.
    commands : what makes the study, and what prints the table of strategies again.
    """

    study: str
    profile: str
    data: str
    tokenizer: str
    digest: str
    codebook: Codebook
    arranged: Rearrangement
    use: np.ndarray
    strategies: pd.DataFrame
    left_out: dict[str, str] = field(default_factory=dict)
    neighbours: Neighbours | None = None
    scale: dict[str, str] = field(default_factory=dict)
    commands: tuple[str, ...] = ()

    @property
    def vectors(self) -> np.ndarray:
        """The codes, float32 (N, d)."""
        return self.codebook.vectors

    @property
    def metric(self) -> str:
        """By what the tokenizer compares codes: "cosine" or "euclidean"."""
        return self.codebook.lookup

    @property
    def labels(self) -> np.ndarray:
        """The cluster of every code by its old index, int64 (N,)."""
        return self.arranged.labels

    @property
    def permutation(self) -> np.ndarray:
        """`permutation[old] = new`, int64 (N,)."""
        return self.arranged.permutation

    @property
    def sizes(self) -> np.ndarray:
        """How many codes each cluster has, int64 (n,)."""
        return np.diff(self.arranged.boundaries)

    @property
    def n_clusters(self) -> int:
        return len(self.sizes)


def load_codebook_results(workspace: Workspace, study: str) -> CodebookResults:
    """Read what there is to see of the codebook of a study's baseline; make the product that holds it, if need be.

    Raises
    ------
    InputError : the study was not run here, or its codes, its clustering or its product are no longer here.
    """
    manifest = read_manifest(workspace, study)
    about = _about(manifest, workspace)
    arrays, metadata = load_arrays(codebook_product(workspace, study))
    header = metadata[KIND]
    n_clusters = len(arrays["boundaries"]) - 1
    neighbours = None
    if "pictures" in arrays:
        shown = {name: arrays[name] for name in ("codes", "pictures", "places", "images")}
        neighbours = Neighbours(tuple(header["columns"]), **shown)
    return CodebookResults(
        study=study,
        profile=manifest["profile"],
        data=about["data"]["name"],
        tokenizer=header["tokenizer"],
        digest=about["inputs"]["tokenizer"],
        codebook=Codebook(arrays["codebook"], header["lookup"], header["source"]),
        arranged=Rearrangement(arrays["permutation"], arrays["boundaries"]),
        use=arrays["use"],
        strategies=pd.DataFrame(**header["strategies"]),
        left_out=header["left_out"],
        neighbours=neighbours,
        scale=_scale(about, arrays["codebook"].shape, header["lookup"], n_clusters),
        commands=_commands(manifest, header["source"], n_clusters),
    )


def codebook_product(workspace: Workspace, study: str) -> Path:
    """Return the file that holds all of `CodebookResults` that is not in the study's manifest and trials; make it once.

    Raises as `load_codebook_results`.
    """
    manifest = read_manifest(workspace, study)
    about = _about(manifest, workspace)
    inputs = [about["inputs"][name] for name in INPUTS]
    name = digest(RECIPE, THREADS, KIND, inputs, SHOWN_CODES, RANKS, HELD_OUT)[:16]
    path = workspace.cache / f"{KIND}-{name}.safetensors"
    if not path.exists():
        if workspace.frozen:
            raise InputError(f"{workspace.root} holds no codebook of study {study!r}; export the study anew")
        _make(path, about, manifest, workspace)
    return path


def _about(manifest: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    """Return what the first trial of the baseline that was begun says of itself."""
    first = sorted(manifest["trials"], key=lambda trial: trial["arm"] != manifest["baseline"])
    folders = (workspace.trials / trial["hash"] for trial in first)
    folder = next((folder for folder in folders if (folder / "trial.json").exists()), None)
    if folder is None:
        study = manifest["study"]
        raise InputError(f"no trial of study {study!r} was begun here; `iar-study run {study}` goes on with them")
    return read_record(folder)


@dataclass(frozen=True)
class _Source:
    """What a product is made from.

    use : int64 (N,), tokens of the training images; tokens : int (n, T), of held-out images, none without a tokenizer.
    """

    file: Path
    codebook: Codebook
    use: np.ndarray
    tokenizer: str
    tokens: np.ndarray | None


def _make(path: Path, about: dict[str, Any], manifest: dict[str, Any], workspace: Workspace) -> None:
    study = manifest["study"]
    found = _encoded_source if _was_encoded(about) else _own_source
    source = found(about, manifest, workspace)
    judging = _find("clustering", about["inputs"]["judging"], workspace)
    if source is None or judging is None:
        raise InputError(f"the codes of study {study!r} are not in {workspace.cache}; `iar-study run {study}` first")
    codebook, arranged = source.codebook, Rearrangement.load(judging)
    strategies, left_out = _compared(codebook, len(arranged.boundaries) - 1)
    arrays = {
        "codebook": codebook.vectors,
        "permutation": arranged.permutation,
        "boundaries": arranged.boundaries,
        "use": source.use,
    }
    columns: tuple[str, ...] = ()
    if source.tokens is not None:
        with _decoder(source.tokenizer) as decode:
            shown = replace_codes(codebook, arranged, source.use, source.tokens, decode)
        columns = shown.columns
        arrays |= {name: getattr(shown, name) for name in ("codes", "pictures", "places", "images")}
    header = {
        "inputs": {name: about["inputs"][name] for name in INPUTS},
        "tokenizer": Path(source.tokenizer).name,
        "source": source.file.name,
        "lookup": codebook.lookup,
        "columns": columns,
        "strategies": strategies.to_dict("split"),
        "left_out": left_out,
    }
    save_arrays(path, arrays, {KIND: header})  # one entry: of several, safetensors shuffles the order


def _was_encoded(about: dict[str, Any]) -> bool:
    """Whether the images came encoded, `codes:PATH`."""
    return about["config"]["data.name"].startswith("codes:")


def _own_source(about: dict[str, Any], manifest: dict[str, Any], workspace: Workspace) -> _Source | None:
    """Find tokenizer and codes by their content: another study may have made them."""
    codes = _find("codes", about["inputs"]["codes"], workspace)
    if codes is None:
        return None
    arrays, codebook = load_arrays(codes)[0], load_codebook(codes)
    use = codebook.use(arrays["train_tokens"])
    tokenizer = _tokenizer(about, workspace)
    tokens = arrays["test_tokens"][:HELD_OUT] if tokenizer else None
    return _Source(codes, codebook, use, tokenizer or "no longer there", tokens)


def _tokenizer(about: dict[str, Any], workspace: Workspace) -> str | None:
    """Return the tokenizer that was trained or given, where it is still there."""
    content, given = about["inputs"]["tokenizer"], about["config"]["tokenizer.checkpoint"]
    if given is None:
        product = _find("tokenizer", content, workspace)
        return str(product) if product else None
    with suppress(InputError):
        if given_tokenizer(given)[0] == content:
            return given
    return None


def _encoded_source(about: dict[str, Any], manifest: dict[str, Any], workspace: Workspace) -> _Source | None:
    """Find the use of the codes; the tokenizer and the codes themselves may be elsewhere by now."""
    products = [workspace.cache / name for name in manifest["products"] if name.startswith("use-")]
    if not products or not products[0].exists():
        return None
    checkpoint = about["config"]["tokenizer.checkpoint"]
    found: Encoded | None = None
    with suppress(InputError):
        found = encoded_of(about["config"]["data.name"], checkpoint)
    there = found is not None and (found.tokenizer_digest, found.digest) == tuple(
        about["inputs"][name] for name in ("tokenizer", "codes")
    )
    tokens = np.array(found.test.codes[:HELD_OUT, 0]) if found and there else None
    return _Source(products[0], load_codebook(products[0]), load_arrays(products[0])[0]["use"], checkpoint, tokens)


def _find(kind: str, content: str, workspace: Workspace) -> Path | None:
    """Return the product of this kind and content."""
    products = sorted(workspace.cache.glob(f"{kind}-*.safetensors"))
    return next((path for path in products if load_metadata(path).get("digest") == content), None)


@contextmanager
def _decoder(tokenizer: str) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Give a function of tokens, int (n, T), that returns pictures, uint8 (n, h, w, c), always the same bits."""
    # Here, not on top: who shows a codebook that was looked at before does not wait for torch.
    import torch

    from iar_study.tokenizers.given import decoded, load_tokenizer

    model, threads = load_tokenizer(tokenizer), torch.get_num_threads()

    def decode(tokens: np.ndarray) -> np.ndarray:
        return np.concatenate(list(decoded(model, tokens)))

    torch.set_num_threads(THREADS)
    try:
        yield decode
    finally:
        torch.set_num_threads(threads)


def _compared(codebook: Codebook, n_clusters: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """Compare the strategies as `iar-study inspect` does, and say which do not fit this codebook."""
    tables, left_out = [], {}
    for strategy in STRATEGIES:
        try:
            tables.append(compare_strategies(codebook.points, n_clusters, [strategy]))
        except InputError as error:
            left_out[strategy] = str(error)
    # What a clock says is another number each time, and what is behind the ninth digit, on another machine.
    return pd.concat(tables, ignore_index=True).drop(columns="seconds").round(9), left_out


def replace_codes(
    codebook: Codebook,
    arranged: Rearrangement,
    use: np.ndarray,
    tokens: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray],
) -> Neighbours:
    """Replace one code at a time in the image that has it most often, by its neighbours and by random other codes.

    The codes are not chosen by eye: of those that occur in `tokens`, sorted by `use`, they are the most and the least
    used one and others evenly between. Of several images that have a code equally often, it is the first.

    Parameters
    ----------
    use : int (N,), how often each code occurs among the training images.
    tokens : int (n, grid * grid) of held-out images, in the codebook's original order.
    decode : tokens (k, grid * grid) -> uint8 pictures (k, h, w, c).
    """
    by_use = np.argsort(-use, kind="stable")
    seen = by_use[codebook.use(tokens)[by_use] > 0]
    chosen = seen[np.linspace(0, len(seen) - 1, min(SHOWN_CODES, len(seen))).round().astype(int)]
    ranks = [rank for rank in RANKS if rank < len(use)]
    rng = np.random.default_rng(0)
    random_code = random_other_codes(chosen, Rearrangement.identity(len(use)), rng)
    same_cluster = random_other_codes(chosen, arranged, rng)
    codes = np.column_stack([chosen, nearest_codes(codebook, ranks)[chosen], same_cluster, random_code])
    images = np.array([(tokens == code).sum(1).argmax() for code in chosen])
    places = tokens[images] == chosen[:, None]
    replaced = np.where(places[:, None], codes[..., None], tokens[images][:, None])
    pictures = decode(replaced.reshape(-1, tokens.shape[1]))
    grid = side_in_tokens(tokens.shape[1])
    return Neighbours(
        columns=("true tokens", *(f"rank {rank}" for rank in ranks), "same cluster", "random code"),
        codes=codes.astype(np.int64),
        pictures=pictures.reshape(*codes.shape, *pictures.shape[1:]),
        places=places.reshape(-1, grid, grid),
        images=images,
    )


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the vectors, float (N, d), on their two principal axes, float64 (N, 2), and each axis's share of variance.

    Vectors too large or too small to be squared are divided by a power of two before.

    An axis points to where its largest loading is positive, and numbers are rounded: the same on every machine.
    """
    vectors = within_range(vectors)
    centred = vectors - vectors.mean(0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    plane, shares = np.zeros((len(vectors), 2)), np.zeros(2)
    total = np.square(spread).sum() or 1.0
    for column, (length, axis) in enumerate(zip(spread[:2], axes[:2], strict=True)):
        largest = axis[np.abs(axis).round(9).argmax()]
        plane[:, column] = (centred @ axis * np.sign(largest)).round(6)
        shares[column] = length**2 / total
    return plane, shares


def similarities(vectors: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of two lists of codes, float64 (rows, columns), to three decimals."""
    unit = comparable(vectors, "cosine")
    return (unit[rows] @ unit[columns].T).round(3)


def pair_similarities(results: CodebookResults) -> dict[str, np.ndarray]:
    """Return the similarities of pairs of codes `within` a cluster, `between` clusters, and `within random` ones.

    The random clusters have the sizes of the others. Every pair is there, up to `PAIRS`; of more, those of some codes,
    evenly spaced over the indices.
    """
    size, labels = len(results.use), results.labels
    some = evenly(size, max(1, PAIRS // size))
    found = similarities(results.vectors, some, np.arange(size))
    # Each pair of two codes that are looked at is there twice, as any other but once; one of them is enough.
    twice = np.isin(np.arange(size), some)[None] & (np.arange(size)[None] <= some[:, None])
    shuffled = np.random.default_rng(0).permutation(labels)
    together = labels[some, None] == labels[None]
    by_chance = shuffled[some, None] == shuffled[None]
    return {
        "within": found[together & ~twice],
        "between": found[~together & ~twice],
        "within random": found[by_chance & ~twice],
    }


def similarity_by_rank(vectors: np.ndarray) -> pd.Series:
    """Return how similar the r-th nearest other vector is, mean over the vectors; the index is r's share of the others.

    The share makes tables of different length comparable. Of a long table `ROWS` vectors stand for all.
    """
    unit = comparable(vectors[evenly(len(vectors), ROWS)], "cosine")
    some = evenly(len(unit), RANKED)
    found = unit[some] @ unit.T
    found[np.arange(len(some)), some] = np.inf
    ranked = -np.sort(-found, axis=1)[:, 1:]
    others = ranked.shape[1]
    ranks = np.unique(np.concatenate([np.geomspace(1, others, 60), np.linspace(1, others, 60)]).round().astype(int))
    share = pd.Index(ranks / others, name="share")
    return pd.Series(ranked.mean(0)[ranks - 1].round(4), index=share, name="similarity")


def shuffled(vectors: np.ndarray) -> np.ndarray:
    """Return a table with the same numbers in each dimension, but shuffled: what similarity owes to these alone."""
    rng = np.random.default_rng(0)
    some = vectors[evenly(len(vectors), ROWS)]
    return np.column_stack([rng.permutation(column) for column in some.T])


def evenly(size: int, most: int) -> np.ndarray:
    """Return at most so many of 0 ... size - 1, evenly spaced.

    >>> evenly(5, 3), evenly(2, 3)
    (array([0, 2, 4]), array([0, 1]))
    """
    return np.linspace(0, size - 1, min(size, most)).round().astype(int)


def _scale(about: dict[str, Any], shape: tuple[int, ...], lookup: str, n_clusters: int) -> dict[str, str]:
    data, quality = about["data"], about["tokenizer"]
    colours = "grey" if data["channels"] == 1 else "colour"
    told = f"PSNR {quality['psnr']:.1f} dB on held-out images, " if "psnr" in quality else ""
    return {
        "data set": data["name"],
        "images": f"{data['train_images']:,} for training, {data['test_images']:,} held out, "
        f"{data['image_size']} x {data['image_size']} pixels, {colours}",
        "codebook": f"{shape[0]:,} codes of dimension {shape[1]}, looked up by {lookup}",
        "tokenizer": f"{told}{quality['usage']:.0%} of the codes used, perplexity {quality['perplexity']:.0f}",
        "clusters": f"{n_clusters}, by balanced k-means: those that every arm of the study is judged by",
    }


def _commands(manifest: dict[str, Any], source: str, n_clusters: int) -> tuple[str, ...]:
    settings = [f"{key}={value}" for key, value in manifest["settings"].items()]
    run = ["iar-study", "run", manifest["study"], "--profile", manifest["profile"]]
    run += ["--set", *settings] if settings else []
    file = f"runs/cache/{source}"
    inspect = ["iar-study", "inspect", file, "--clusters", str(n_clusters)]
    # What counts the tokens of encoded images has the codebook and their number, not the tokens.
    inspect += ["--tokens", file] if source.startswith("codes-") else []
    return shlex.join(run), shlex.join(inspect)
