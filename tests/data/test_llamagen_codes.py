"""Codes in one file: round trip, going on after any kill, and one clear line for whatever is wrong with the source."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iar_study.data import llamagen_codes
from iar_study.data.llamagen_codes import code_type, open_codes, pack_codes, write_codes
from iar_study.errors import InputError

IMAGES, AUGMENTATIONS, TOKENS = 23, 10, 16


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """LlamaGen's two folders, with the int64 arrays of its extraction."""
    rng = np.random.default_rng(0)
    codes, labels = tmp_path / "imagenet256_codes", tmp_path / "imagenet256_labels"
    codes.mkdir()
    labels.mkdir()
    for i in range(IMAGES):
        np.save(codes / f"{i}.npy", rng.integers(16_384, size=(1, AUGMENTATIONS, TOKENS)))
        np.save(labels / f"{i}.npy", rng.integers(1000, size=1))
    return codes


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip(source: Path, tmp_path: Path) -> None:
    seen = []
    packed = pack_codes(source, tmp_path / "new" / "codes", step=5, progress=lambda *at: seen.append(at[:2]))
    assert packed.codes.shape == (IMAGES, AUGMENTATIONS, TOKENS)
    assert packed.codes.dtype == np.int16
    assert isinstance(packed.codes, np.memmap)
    for i in range(IMAGES):
        np.testing.assert_array_equal(packed.codes[i], np.load(source / f"{i}.npy")[0])
        assert packed.labels[i] == np.load(tmp_path / "imagenet256_labels" / f"{i}.npy")[0]
    assert seen == [(0, 23), (5, 23), (10, 23), (15, 23), (20, 23), (23, 23)]
    assert set(content(tmp_path / "new" / "codes")) == {"codes.npy", "labels.npy", "index.json"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["codes"]


def test_crops_of_a_second_range_are_more_augmentations(tmp_path: Path) -> None:
    """As LlamaGen reads an image of either folder with equal chance."""
    rng = np.random.default_rng(0)
    folders = [tmp_path / name / "imagenet256_codes" for name in ("c2i_flip_ten_crop", "c2i_flip_ten_crop_105")]
    for folder in folders:
        labels = folder.with_name("imagenet256_labels")
        folder.mkdir(parents=True)
        labels.mkdir()
        for i in range(5):
            np.save(folder / f"{i}.npy", rng.integers(16_384, size=(1, AUGMENTATIONS, TOKENS)))
            np.save(labels / f"{i}.npy", np.array([i]))
    packed = pack_codes(folders[0], tmp_path / "codes", step=2)
    assert packed.codes.shape == (5, 2 * AUGMENTATIONS, TOKENS)
    for i in range(5):
        views = [np.load(folder / f"{i}.npy")[0] for folder in folders]
        np.testing.assert_array_equal(packed.codes[i], np.concatenate(views))
    assert pack_codes(folders[1], tmp_path / "second").codes.shape[1] == AUGMENTATIONS
    np.save(tmp_path / "c2i_flip_ten_crop_105" / "imagenet256_labels" / "3.npy", np.array([7]))
    with pytest.raises(InputError, match=r"3\.npy tells another class than"):
        pack_codes(folders[0], tmp_path / "other")


def test_the_index_says_what_there_is(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "codes"
    index = pack_codes(source, folder).index
    assert {key: index[key] for key in ("images", "augmentations", "tokens", "codebook_size", "classes")} == {
        "images": IMAGES,
        "augmentations": AUGMENTATIONS,
        "tokens": TOKENS,
        "codebook_size": 16_384,
        "classes": 1000,
    }
    assert index == json.loads((folder / "index.json").read_text())
    for name, shape, dtype in (("codes.npy", [23, 10, 16], "int16"), ("labels.npy", [23], "int64")):
        sha256 = subprocess.run(["sha256sum", folder / name], capture_output=True, text=True, check=True).stdout.split()
        assert index[name] == {"shape": shape, "dtype": dtype, "sha256": sha256[0]}
    np.testing.assert_array_equal(np.load(folder / "codes.npy"), open_codes(folder, check_content=True).codes)


@pytest.mark.parametrize(("size", "dtype"), [(256, "uint8"), (257, "int16"), (32_768, "int16"), (65_536, "uint16")])
def test_the_smallest_type_that_holds_the_codebook(source: Path, tmp_path: Path, size: int, dtype: str) -> None:
    assert code_type(size) == dtype
    extreme = np.full((1, AUGMENTATIONS, TOKENS), size - 1)
    for i in range(IMAGES):
        np.save(source / f"{i}.npy", extreme)
    packed = pack_codes(source, tmp_path / "codes", codebook_size=size)
    assert packed.codes.dtype == dtype
    assert (packed.codes == size - 1).all()


def test_a_second_call_reads_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pack_codes(source, tmp_path / "codes")
    monkeypatch.setattr(llamagen_codes, "_read_checked", None)
    assert pack_codes(source, tmp_path / "codes").index == before.index


def test_padding_at_the_end_can_be_left_out(source: Path, tmp_path: Path) -> None:
    packed = pack_codes(source, tmp_path / "codes", images=20)
    assert packed.codes.shape == (20, AUGMENTATIONS, TOKENS)
    with pytest.raises(InputError, match=r"imagenet256_codes/23.npy is missing, 2 of the numbers 0 to 24"):
        pack_codes(source, tmp_path / "more", images=25)


KILLED = """
import os, signal, sys
from iar_study.data import llamagen_codes
source, folder, count = sys.argv[1:]
read, calls = llamagen_codes._read_checked, 0

def read_or_die(*arguments):
    global calls
    calls += 1
    if calls > int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(*arguments)

llamagen_codes._read_checked = read_or_die
llamagen_codes.pack_codes(llamagen_codes.Path(source), llamagen_codes.Path(folder), step=4)
"""


def test_killed_at_any_time_it_goes_on_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    pack_codes(source, tmp_path / "whole", step=4)
    folder = tmp_path / "codes"
    for count in (0, 21, 21):  # reads before the kill: none, and two steps and a bit further each time
        script = [sys.executable, "-c", KILLED, source, folder, str(count)]
        assert subprocess.run(script, check=False).returncode == -signal.SIGKILL
        assert not folder.exists()
    read = []
    resumed = pack_codes(source, folder, step=4, progress=lambda done, total, _: read.append(done))
    assert read[0] == 16
    assert resumed.labels.shape == (IMAGES,)
    assert content(folder) == content(tmp_path / "whole")
    assert not (tmp_path / ".codes.partial").exists()


@settings(max_examples=25, deadline=None)
@given(cuts=st.tuples(st.floats(0, 1), st.floats(0, 1)), indexed=st.booleans())
def test_any_beginning_of_the_files_is_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, cuts: tuple[float, float], indexed: bool
) -> None:
    """What a kill can leave: any length of either file, with or without the index that is written last."""
    rng, root = np.random.default_rng(1), tmp_path_factory.mktemp("any")
    tokens, labels = rng.integers(300, size=(11, 2, 3)), rng.integers(5, size=11)
    plan = {"images": 11, "augmentations": 2, "tokens": 3, "codebook_size": 300, "classes": 5, "source": {}}

    def batches(start):
        assert start % 4 == 0
        return ((tokens[i : i + 4], labels[i : i + 4]) for i in range(start, 11, 4))

    write_codes(root / "whole", plan, batches, step=4)
    partial = root / ".codes.partial"
    (root / "whole").rename(partial)
    kept = content(partial)
    for name, cut in zip(("codes.npy", "labels.npy"), cuts, strict=True):
        os.truncate(partial / name, int(cut * len(kept[name])))
    if not indexed:
        (partial / "index.json").write_text(json.dumps(plan))
    (partial / ".index.json.123.tmp").write_text("{")
    write_codes(root / "codes", plan, batches, step=4)
    assert content(root / "codes") == kept


def test_a_folder_is_written_by_one_process_at_a_time(source: Path, tmp_path: Path) -> None:
    def again(done: int, total: int, detail: str) -> None:
        with pytest.raises(InputError, match="being written by another process"):
            pack_codes(source, tmp_path / "codes")
        tried.set()

    tried = threading.Event()
    pack_codes(source, tmp_path / "codes", progress=again)
    assert tried.is_set()


def test_another_source_is_not_mixed_in(source: Path, tmp_path: Path) -> None:
    pack_codes(source, tmp_path / "codes")
    np.save(source / "3.npy", np.zeros((1, AUGMENTATIONS, TOKENS), int))
    os.utime(source / "3.npy", (1, 1))
    with pytest.raises(InputError, match=r"codes was made of something else \(source.files differ\)"):
        pack_codes(source, tmp_path / "codes")
    (tmp_path / "codes").rename(tmp_path / ".other.partial")
    with pytest.raises(InputError, match=r"\(codebook_size, source.files differ\); delete it"):
        pack_codes(source, tmp_path / "other", codebook_size=20_000)


def spoil(source: Path, how: str) -> None:
    labels = source.with_name("imagenet256_labels")
    path, codes = source / "7.npy", np.load(source / "7.npy")
    {
        "missing": lambda: (path.unlink(), (source / "9.npy").unlink()),
        "missing label": (labels / "7.npy").unlink,
        "fewer labels": (labels / "22.npy").unlink,
        "truncated": lambda: path.write_bytes(path.read_bytes()[:-5]),
        "empty": lambda: path.write_bytes(b""),
        "pickle": lambda: np.save(path, np.array([{}], object), allow_pickle=True),
        "tokens": lambda: np.save(path, codes[..., :-1]),
        "two axes": lambda: np.save(path, codes[0]),
        "floats": lambda: np.save(path, codes.astype(np.float32)),
        "too large": lambda: np.save(path, np.where(np.arange(TOKENS) == 3, 16_384, codes)),
        "negative": lambda: np.save(path, -codes),
        "class": lambda: np.save(labels / "7.npy", [1000]),
        "flat": lambda: np.save(source / "0.npy", codes[0]),
        "none": lambda: [each.unlink() for each in source.iterdir()],
        "no labels": lambda: labels.rename(labels.with_name("elsewhere")),
    }[how]()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "imagenet256_codes/7.npy is missing, 2 of the numbers 0 to 22 in all"),
        ("missing label", "imagenet256_labels/7.npy is missing"),
        ("fewer labels", "imagenet256_codes has 23 files, but .*imagenet256_labels has 22"),
        ("truncated", "imagenet256_codes/7.npy cannot be read"),
        ("empty", "imagenet256_codes/7.npy cannot be read"),
        ("pickle", "imagenet256_codes/7.npy cannot be read"),
        ("tokens", r"7.npy is int64 \(1, 10, 15\), where integers \(1, 10, 16\) are expected"),
        ("two axes", r"7.npy is int64 \(10, 16\), where"),
        ("floats", r"7.npy is float32 \(1, 10, 16\), where integers"),
        ("too large", r"7.npy holds \d+ ... 16384, but there are 16384 codes"),
        ("negative", r"7.npy holds -\d+"),
        ("class", "imagenet256_labels/7.npy holds 1000 ... 1000, but there are 1000 classes"),
        ("flat", r"0.npy is of shape \(10, 16\), not \(1, augmentations, tokens\)"),
        ("none", "no files 0.npy, 1.npy, ... in .*imagenet256_codes"),
        ("no labels", "imagenet256_labels cannot be read"),
    ],
)
def test_a_bad_source_is_one_line_that_names_the_file(source: Path, tmp_path: Path, how: str, message: str) -> None:
    spoil(source, how)
    with pytest.raises(InputError, match=message) as caught:
        pack_codes(source, tmp_path / "codes", step=5)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "codes").exists()


def test_a_mended_source_is_read_from_the_beginning_of_its_own_plan(source: Path, tmp_path: Path) -> None:
    whole = (source / "20.npy").read_bytes()
    stat = (source / "20.npy").stat()
    (source / "20.npy").write_bytes(whole[:-1] + b"\xff")  # the last token becomes negative
    os.utime(source / "20.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(InputError, match=r"20\.npy holds -"):
        pack_codes(source, tmp_path / "codes", step=5)
    (source / "20.npy").write_bytes(whole)
    os.utime(source / "20.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    pack_codes(source, tmp_path / "codes", step=5)


def test_the_source_must_be_a_folder_of_codes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not named \.\.\._codes"):
        pack_codes(tmp_path / "imagenet", tmp_path / "codes")
    with pytest.raises(InputError, match="cannot be read"):
        pack_codes(tmp_path / "imagenet256_codes", tmp_path / "codes")


def test_other_files_are_never_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "codes").mkdir()
    pack_codes(source, tmp_path / "codes")  # an empty folder will do
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="notes is no folder of codes, and not empty"):
        pack_codes(source, tmp_path / "notes")
    with pytest.raises(InputError, match=r"mine\.txt is no folder of codes"):
        pack_codes(source, tmp_path / "notes" / "mine.txt")


@pytest.mark.parametrize(
    ("name", "spoilt", "message"),
    [
        ("codes.npy", lambda old: old[:-1], "codes.npy is damaged"),
        ("codes.npy", lambda old: b"", "codes.npy is damaged"),
        ("labels.npy", lambda old: None, "labels.npy is damaged"),
        ("index.json", lambda old: old[:-5], "index.json is not valid JSON"),
        ("index.json", lambda old: None, "no index.json in"),
        ("index.json", lambda old: b"{}", "codes.npy is damaged"),
        (
            "index.json",
            lambda old: old.replace(b"int16", b"int32"),
            r"codes.npy is int16 \(23, 10, 16\), where .* int32",
        ),
        ("codes.npy", lambda old: old[:-1] + b"\x01", "codes.npy does not have the SHA-256"),
    ],
)
def test_damaged_codes_are_not_opened(source: Path, tmp_path: Path, name: str, spoilt, message: str) -> None:
    pack_codes(source, tmp_path / "codes")
    path = tmp_path / "codes" / name
    new = spoilt(path.read_bytes())
    path.unlink()
    if new is not None:
        path.write_bytes(new)
    with pytest.raises(InputError, match=message):
        open_codes(tmp_path / "codes", check_content=True)


def test_a_full_disk_is_an_input_error_and_can_be_gone_on_from(source: Path, tmp_path: Path) -> None:
    """A file-size limit is what a full disk looks like to a process."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000));"
        "from iar_study.data.llamagen_codes import Path, pack_codes;"
        "pack_codes(Path(sys.argv[1]), Path(sys.argv[2]), step=4)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, source, tmp_path / "codes"], capture_output=True, text=True, check=False
    )
    assert "InputError: cannot write" in done.stderr
    assert done.returncode == 1
    pack_codes(source, tmp_path / "codes", step=4)
    pack_codes(source, tmp_path / "whole", step=4)
    assert content(tmp_path / "codes") == content(tmp_path / "whole")


def test_reading_one_image_does_not_read_them_all(tmp_path: Path) -> None:
    """256 MB of codes are written and opened by a process that may grow by no more than 100 MB."""
    script = """
import resource, sys
import numpy as np
from iar_study.data.llamagen_codes import Path, write_codes
plan = {"images": 4096, "augmentations": 8, "tokens": 4096, "codebook_size": 16384, "classes": 1, "source": {}}
batch = np.zeros((256, 8, 4096), np.int16), np.zeros(256, np.int64)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codes = write_codes(Path(sys.argv[1]), plan, lambda start: (batch for _ in range(16)), step=256)
assert codes.codes[4000, 7].sum() == 0
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
assert grown < 100_000, grown
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "codes"], check=True)
