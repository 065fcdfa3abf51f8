"""Codebook: every file it is read from, what it refuses, duplicates and dead codes."""

import argparse
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from iar_study.codebook import Codebook
from iar_study.errors import InputError

VECTORS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
NAME = "quantize.embedding.weight"
WEIGHTS = {
    NAME: torch.from_numpy(VECTORS),
    "quantize.codebook_used": torch.zeros(65536),
    "encoder.conv_in.weight": torch.zeros(2, 3, 3, 3),
    "decoder.linear.weight": torch.zeros(5, 5),
}

FILES = {
    "array.npy": (lambda path: np.save(path, VECTORS), "array", "cosine"),
    "one.npz": (lambda path: np.savez(path, anything=VECTORS, labels=np.arange(3)), "array", "cosine"),
    "ours.safetensors": (lambda path: save_file({NAME: VECTORS, "w": np.zeros((2, 2))}, path), "tokenizer", "cosine"),
    "trial.safetensors": (
        lambda path: save_file({"codebook": VECTORS, "x": np.zeros((2, 2))}, path),
        "array",
        "cosine",
    ),
    "llamagen.pt": (
        lambda path: torch.save({"model": WEIGHTS, "steps": 3, "args": argparse.Namespace(lr=1)}, path),
        "LlamaGen",
        "cosine",
    ),
    "ema.pt": (lambda path: torch.save({"ema": WEIGHTS}, path), "LlamaGen", "cosine"),
    "taming.ckpt": (lambda path: torch.save({"state_dict": WEIGHTS, "epoch": 1}, path), "taming", "euclidean"),
    "bare.pth": (lambda path: torch.save(WEIGHTS, path), "array", "cosine"),
    "prefixed.bin": (
        lambda path: torch.save({"state_dict": {f"first_stage_model.{NAME}": WEIGHTS[NAME]}}, path),
        "taming",
        "euclidean",
    ),
    "tensor.pt": (lambda path: torch.save(WEIGHTS[NAME], path), "array", "cosine"),
}


@pytest.mark.parametrize("file", FILES)
def test_it_is_read_from_every_kind_of_file(tmp_path, file):
    write, source, lookup = FILES[file]
    write(tmp_path / file)
    codebook = Codebook.load(tmp_path / file)
    np.testing.assert_array_equal(codebook.vectors, VECTORS)
    assert codebook.lookup == lookup
    assert source in codebook.source
    assert Codebook.load(tmp_path / file, "euclidean").lookup == "euclidean"


def test_a_rule_that_a_file_does_not_tell_is_said_to_be_taken_for_granted(tmp_path):
    np.save(tmp_path / "a.npy", VECTORS)
    assert "look-up taken to be by cosine" in Codebook.load(tmp_path / "a.npy").source
    assert "taken" not in Codebook.load(tmp_path / "a.npy", "cosine").source


def test_half_precision_becomes_float32(tmp_path):
    save_tensors({NAME: WEIGHTS[NAME].bfloat16()}, tmp_path / "half.safetensors", metadata={"format": "pt"})
    torch.save({"model": {NAME: WEIGHTS[NAME].bfloat16()}}, tmp_path / "half.pt")
    np.save(tmp_path / "half.npy", VECTORS.astype(np.float16))
    for file in ("half.pt", "half.npy", "half.safetensors"):
        assert Codebook.load(tmp_path / file).vectors.dtype == np.float32


def test_a_table_can_be_named(tmp_path):
    np.savez(tmp_path / "two.npz", a=VECTORS, b=VECTORS[:3])
    with pytest.raises(InputError, match=r"which table.*--tensor NAME.*a \(12, 4\), b \(3, 4\)"):
        Codebook.load(tmp_path / "two.npz")
    with pytest.raises(InputError, match="no table 'c'; its tables: a"):
        Codebook.load(tmp_path / "two.npz", name="c")
    np.testing.assert_array_equal(Codebook.load(tmp_path / "two.npz", name="b").vectors, VECTORS[:3])


class Code:
    """What a checkpoint must never be able to run."""

    def __reduce__(self):
        return os.system, ("true",)


def spoil(path, how):
    if how == "missing":
        return
    FILES[path.name][0](path)
    if how == "code":
        torch.save({"state_dict": WEIGHTS, "callback": Code()}, path)
    else:
        path.write_bytes({"empty": b"", "noise": b"noise" * 99, "truncated": path.read_bytes()[:-200]}[how])


@pytest.mark.parametrize("file", ["array.npy", "one.npz", "ours.safetensors", "llamagen.pt"])
@pytest.mark.parametrize("how", ["missing", "empty", "noise", "truncated"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, file, how):
    spoil(tmp_path / file, how)
    with pytest.raises(InputError, match=file) as caught:
        Codebook.load(tmp_path / file)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    spoil(tmp_path / "taming.ckpt", "code")
    with pytest.raises(InputError, match="save its weights alone"):
        Codebook.load(tmp_path / "taming.ckpt")


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros(3, np.float32), "float .N, d. array"),
        (np.zeros((0, 3), np.float32), "float .N, d. array"),
        (np.zeros((3, 3), np.int64), "float .N, d. array"),
        (np.where(np.eye(3) > 0, np.nan, 1.0), "3 of 3 codes are NaN or infinite, the first is 0"),
    ],
)
def test_what_is_no_codebook_is_refused(vectors, message):
    with pytest.raises(InputError, match=message):
        Codebook(vectors)


def test_an_unknown_file_or_rule_is_refused(tmp_path):
    (tmp_path / "codebook.txt").write_text("1 2 3")
    with pytest.raises(InputError, match="unknown kind of file"):
        Codebook.load(tmp_path / "codebook.txt")
    with pytest.raises(InputError, match="look-up rule"):
        Codebook(VECTORS, "manhattan")


def test_duplicates_are_told_and_kept():
    vectors = VECTORS.copy()
    vectors[[3, 7]] = vectors[1]
    vectors[11] = vectors[0]
    groups = Codebook(vectors).duplicates()
    assert [group.tolist() for group in groups] == [[0, 11], [1, 3, 7]]
    assert len(Codebook(vectors).points) == 12
    assert Codebook(VECTORS).duplicates() == []


def test_use_counts_tokens_and_shows_dead_codes():
    use = Codebook(VECTORS).use(np.array([[0, 1], [1, 11]], dtype=np.uint16))
    assert use.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    for tokens, message in ((np.array([12]), "12 codes"), (np.array([-1]), "-1"), (np.array([0.5]), "whole numbers")):
        with pytest.raises(InputError, match=message):
            Codebook(VECTORS).use(tokens)


def test_the_digest_tells_vectors_and_rule():
    assert Codebook(VECTORS).digest == Codebook(VECTORS.copy()).digest
    assert Codebook(VECTORS).digest != Codebook(VECTORS, "euclidean").digest
    assert Codebook(VECTORS).digest != Codebook(VECTORS + 1).digest


def test_points_have_length_one_where_the_look_up_is_by_cosine():
    vectors = VECTORS.copy()
    vectors[2] = 0
    lengths = np.linalg.norm(Codebook(vectors).points, axis=1)
    np.testing.assert_allclose(lengths, np.arange(12) != 2)
    np.testing.assert_array_equal(Codebook(vectors, "euclidean").points, vectors)


def test_the_package_does_not_need_torch(tmp_path):
    np.save(tmp_path / "a.npy", VECTORS)
    script = (
        "import sys; from pathlib import Path; from iar_study.codebook import Codebook, cluster_codes;"
        f"cluster_codes(Codebook.load(Path({str(tmp_path / 'a.npy')!r})).vectors, 'balanced', 3);"
        "sys.exit('torch' in sys.modules or 'mlflow' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
