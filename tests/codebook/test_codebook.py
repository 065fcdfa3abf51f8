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

from iar_study.codebook import Codebook, cluster_codes
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
        (VECTORS.astype(complex), "complex128 .12, 4., which holds no floating-point numbers"),
        (np.where(np.eye(3) > 0, np.nan, 1.0), "3 of 3 codes are NaN or infinite, the first is 0"),
        (np.where(np.arange(3)[:, None] == 2, -np.inf, np.ones((3, 3))), "1 of 3 codes .* the first is 2"),
    ],
)
def test_what_is_no_codebook_is_refused(vectors, message):
    with pytest.raises(InputError, match=message):
        Codebook(vectors)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "longdouble"])
@pytest.mark.parametrize("layout", ["C", "Fortran", "strided", "read-only"])
def test_an_array_of_any_precision_byte_order_and_layout_is_the_same_codebook(tmp_path, dtype, layout):
    vectors = VECTORS.astype(np.float16).astype(dtype)
    given = {"Fortran": np.asfortranarray(vectors), "strided": np.repeat(vectors, 2, 1)[:, ::2]}.get(layout, vectors)
    given.flags.writeable = layout != "read-only"
    np.save(tmp_path / "a.npy", given)
    wide = np.dtype(dtype).itemsize >= 8
    expected = Codebook(VECTORS.astype(np.float16).astype(np.float64 if wide else np.float32))
    for codebook in (Codebook(given), Codebook.load(tmp_path / "a.npy")):
        assert codebook.vectors.dtype == expected.vectors.dtype
        assert codebook.digest == expected.digest
        np.testing.assert_array_equal(
            cluster_codes(codebook.vectors, "balanced", 3), cluster_codes(given, "balanced", 3)
        )


@pytest.mark.parametrize("file", ["a.npy", "a.safetensors", "a.pt"])
def test_float64_stays_float64_in_every_kind_of_file(tmp_path, file):
    vectors = VECTORS.astype(np.float64) * 1e200
    save = {
        "a.npy": np.save,
        "a.safetensors": lambda path, a: save_file({"a": a}, path),
        "a.pt": lambda path, a: torch.save({"a": torch.from_numpy(a)}, path),
    }
    save[file](tmp_path / file, vectors)
    np.testing.assert_array_equal(Codebook.load(tmp_path / file).vectors, vectors)


TENSOR = torch.from_numpy(VECTORS)
UNFIT = {
    "deep.npy": (lambda path: np.save(path, VECTORS[None]), r"array \(1, 12, 4\) float32 has 3 dimensions"),
    "row.npy": (lambda path: np.save(path, VECTORS[0]), r"array \(4,\) float32 has 1 dimension$"),
    "whole.npy": (lambda path: np.save(path, VECTORS.astype(int)), r"array \(12, 4\) int64 holds no floating-point"),
    "complex.npy": (lambda path: np.save(path, VECTORS + 0j), r"array \(12, 4\) complex64 holds no floating-point"),
    "bool.npy": (lambda path: np.save(path, VECTORS > 0), r"array \(12, 4\) bool holds no floating-point"),
    "objects.npy": (
        lambda path: np.save(path, np.array([[Code()]]), allow_pickle=True),
        r"array \(1, 1\) object holds no floating-point",
    ),
    "none.npy": (lambda path: np.save(path, VECTORS[:0]), r"array \(0, 4\) float32 is empty"),
    "one.npy": (lambda path: np.save(path, VECTORS[:1]), r"array \(1, 4\) float32 has a single row"),
    "nothing.npz": (np.savez, "there is: nothing"),
    "several.npz": (
        lambda path: np.savez(path, a=VECTORS[None], b=np.arange(3)),
        r"there is: a \(1, 12, 4\) float32 has 3 dimensions, b \(3,\) int64 has 1 dimension$",
    ),
    "many.npz": (
        lambda path: np.savez(path, **{f"w{i:02}": VECTORS[None] for i in range(30)}),
        r"w05 \(1, 12, 4\) float32 has 3 dimensions and 24 more",
    ),
    "nothing.safetensors": (lambda path: save_file({}, path), "there is: nothing"),
    "quantised.safetensors": (
        lambda path: save_tensors({"w": TENSOR.to(torch.int8)}, path),
        r"w \(12, 4\) I8 holds no floating-point",
    ),
    "nothing.pt": (lambda path: torch.save({"epoch": 3}, path), "there is: nothing"),
    "nested.pt": (
        lambda path: torch.save({"net": {"conv": [TENSOR[None]], "table": TENSOR.to(torch.int8)}, "epoch": 3}, path),
        r"there is: net\.conv\.0 \(1, 12, 4\) float32 has 3 dimensions, net\.table \(12, 4\) int8 holds no floating",
    ),
}


@pytest.mark.parametrize("file", UNFIT)
def test_a_file_without_a_codebook_is_told_with_what_it_holds(tmp_path, file):
    write, message = UNFIT[file]
    write(tmp_path / file)
    with pytest.raises(InputError, match=message) as caught:
        Codebook.load(tmp_path / file)
    assert f"{tmp_path / file} holds no codebook; a codebook is a float (N, d) array" in str(caught.value)


def test_a_table_that_is_named_but_does_not_fit_is_told(tmp_path):
    np.savez(tmp_path / "two.npz", a=VECTORS, labels=np.zeros((3, 2), int))
    with pytest.raises(InputError, match=r"a float .N, d. array.* labels \(3, 2\) int64 holds no floating-point"):
        Codebook.load(tmp_path / "two.npz", name="labels")


FIT = {
    "beside_objects.npz": lambda path: np.savez(path, a=VECTORS, settings=np.array([Code()])),
    "nested.pt": lambda path: torch.save({"vq": {"inner": {NAME: TENSOR, "other": TENSOR[:3]}}, "steps": 1}, path),
    "list.pt": lambda path: torch.save([TENSOR], path),
    "parameter.pt": lambda path: torch.save({"w": torch.nn.Parameter(TENSOR)}, path),
    "sparse.pt": lambda path: torch.save({"w": TENSOR.to_sparse()}, path),
}


@pytest.mark.parametrize("file", FIT)
def test_a_table_is_found_wherever_it_lies_in_a_file(tmp_path, file):
    FIT[file](tmp_path / file)
    np.testing.assert_array_equal(Codebook.load(tmp_path / file).vectors, VECTORS)


def test_eight_bits_of_floating_point_are_read(tmp_path):
    save_tensors({"w": TENSOR.to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    expected = TENSOR.to(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(Codebook.load(tmp_path / "a.safetensors").vectors, expected)


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


def test_the_package_needs_little_beyond_scikit_learn(tmp_path):
    np.save(tmp_path / "a.npy", VECTORS)
    script = (
        "import sys, sklearn; brought = set(sys.modules); import iar_study.codebook;"
        "late = {'sklearn.cluster', 'sklearn.metrics', 'sklearn.preprocessing'} & set(sys.modules) - brought;"
        "from pathlib import Path; from iar_study.codebook import Codebook, cluster_codes;"
        f"cluster_codes(Codebook.load(Path({str(tmp_path / 'a.npy')!r})).vectors, 'balanced', 3);"
        "heavy = {'torch', 'mlflow', 'lightning', 'pandas', 'matplotlib', 'pydantic', 'PIL', 'ray'};"
        "sys.exit(' '.join(late | heavy & set(sys.modules) - brought) or None)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
