"""Images that are encoded already, `codes:PATH`: where their codes and their tokenizer are, and whether they fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from iar_study.config import TrialConfig
from iar_study.data.llamagen_codes import CODES, LABELS, ExtractedCodes, open_splits
from iar_study.errors import InputError
from iar_study.storage import digest
from iar_study.tokenizers.layout import side_in_tokens

if TYPE_CHECKING:
    from iar_study.codebook import Codebook


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images that are encoded already, and what is needed of the tokenizer that made their codes."""

    folder: Path
    train: ExtractedCodes
    test: ExtractedCodes
    tokenizer: str
    tokenizer_digest: str
    codebook: Codebook
    patch: int
    channels: int

    @property
    def grid(self) -> int:
        """Tokens along one side of a picture."""
        return side_in_tokens(self.train.codes.shape[2])

    @property
    def class_names(self) -> tuple[str, ...]:
        index = self.test.index | self.train.index
        return tuple(index.get("class_names") or (f"class {k}" for k in range(index["classes"])))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the content, by the checksums of the indices: the codes themselves are not read."""
        checksums = [split.index[part]["sha256"] for split in (self.train, self.test) for part in (CODES, LABELS)]
        return digest(checksums, self.class_names)


@lru_cache(maxsize=2)
def encoded_of(name: str, checkpoint: str | None) -> Encoded:
    """Open the codes of `codes:PATH` and their tokenizer once per process."""
    from iar_study.tokenizers.given import codebook_of, load_tokenizer, tokenizer_digest  # here: it brings torch

    folder = Path(name.removeprefix("codes:")).expanduser().absolute()
    splits = open_splits(folder)
    if checkpoint is None:
        raise InputError(f"{name} needs the tokenizer that made the codes: --set tokenizer.checkpoint=FILE")
    tokenizer = load_tokenizer(checkpoint)
    return Encoded(
        folder,
        **splits,
        tokenizer=checkpoint,
        tokenizer_digest=tokenizer_digest(tokenizer),
        codebook=codebook_of(tokenizer),
        patch=tokenizer.patch,
        channels=tokenizer.in_channels,
    )


def check_given(config: TrialConfig, codebook: Codebook, patch: int) -> None:
    """Raise `InputError` unless the settings of the tokenizer are those of the one that is given."""
    size, dim = codebook.vectors.shape
    wanted = {"codebook_size": size, "code_dim": dim, "patch": patch}
    for key, value in wanted.items():
        if (given := getattr(config.tokenizer, key)) != value:
            settings = " ".join(f"tokenizer.{name}={number}" for name, number in wanted.items())
            raise InputError(
                f"tokenizer.{key} is {given}, but {value} in {config.tokenizer.checkpoint}; --set {settings}"
            )


def check_encoded(config: TrialConfig) -> None:
    """Raise `InputError` for settings that do not fit the codes or their tokenizer."""
    found = encoded_of(config.data.name, config.tokenizer.checkpoint)
    size = len(found.codebook.vectors)
    check_given(config, found.codebook, found.patch)
    index = found.train.index
    if index["codebook_size"] != size:
        raise InputError(
            f"the codes in {found.folder} are of {index['codebook_size']} codes, but {found.tokenizer} has {size}; "
            f"name the tokenizer that made them"
        )
    for split in (found.train, found.test):
        if split.index.get("source", {}).get("tokenizer", found.tokenizer_digest) != found.tokenizer_digest:
            raise InputError(f"{found.tokenizer} is not the tokenizer that made the codes in {found.folder}")
    tokens, side = found.train.codes.shape[2], math.isqrt(found.train.codes.shape[2]) * found.patch
    if tokens < 4 or side**2 != tokens * found.patch**2:
        raise InputError(f"{tokens} tokens an image, in {found.folder}, do not form a square of 2 x 2 or more")
    if config.data.image_size not in (None, side):
        raise InputError(
            f"data.image_size = {config.data.image_size}, but the codes in {found.folder} are of images of {side}: "
            f"{found.grid} x {found.grid} tokens of {found.patch} x {found.patch} pixels; leave image_size out"
        )
