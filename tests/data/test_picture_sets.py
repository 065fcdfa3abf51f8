"""Pictures by the thousand: what is written is read back, by us and by numpy, and bad files are named in one line."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from iar_study.data.picture_sets import PictureSet, open_pictures, open_reference, write_npz
from iar_study.errors import InputError
from tests.data.test_folder import ODD_NAMES, UPRIGHT

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)


def cut(pictures, size):
    return (pictures[i : i + size] for i in range(0, len(pictures), size))


def read(pictures: PictureSet, size=3, first=0):
    batches = list(pictures.batches(size, first))
    assert all(len(batch) == size for batch in batches[:-1])
    return np.concatenate(batches)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3])),
    written=st.integers(1, 10),
    size=st.integers(1, 10),
    labelled=st.booleans(),
    data=st.data(),
)
def test_what_is_written_is_read_back(tmp_path_factory, shape, written, size, labelled, data):
    path = tmp_path_factory.mktemp("round") / "trip.npz"
    pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(shape[0])[::-1].copy() if labelled else None
    write_npz(path, cut(pictures, written), shape[0], shape[1:], labels)
    opened = open_pictures(path)
    assert (opened.count, opened.height, opened.width, opened.channels) == shape
    assert opened.statistics is None
    np.testing.assert_array_equal(read(opened, size), pictures)
    first = data.draw(st.integers(0, shape[0] - 1))
    np.testing.assert_array_equal(read(opened, size, first), pictures[first:])
    kept = data.draw(st.integers(1, shape[0]))
    np.testing.assert_array_equal(read(opened.head(kept), size), pictures[:kept])
    with np.load(path, allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["arr_0"], pictures)
        assert ("arr_1" in loaded) == labelled
        if labelled:
            np.testing.assert_array_equal(loaded["arr_1"], labels)
            np.testing.assert_array_equal(opened.labels, labels)
            np.testing.assert_array_equal(opened.head(kept).labels, labels[:kept])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, save):
    path = tmp_path / "numpy.npz"
    statistics = {"mu": np.arange(2, dtype=np.float32), "sigma": np.eye(2), "mu_s": np.ones(3), "sigma_s": np.eye(3)}
    save(path, PICTURES, np.arange(7, dtype=np.int32), **statistics)
    opened = open_pictures(path)
    np.testing.assert_array_equal(read(opened), PICTURES)
    np.testing.assert_array_equal(read(opened, 2, first=5), PICTURES[5:])
    assert opened.labels.dtype == np.int64
    mu, sigma = opened.statistics
    np.testing.assert_array_equal(mu, [0, 1])
    np.testing.assert_array_equal(sigma, np.eye(2))
    mu_s, sigma_s = opened.spatial_statistics
    np.testing.assert_array_equal(mu_s, [1, 1, 1])
    np.testing.assert_array_equal(sigma_s, np.eye(3))
    assert {mu.dtype, sigma.dtype, mu_s.dtype, sigma_s.dtype} == {np.dtype(np.float64)}


def test_equal_pictures_are_equal_bytes_however_they_come(tmp_path):
    contents = []
    for name, size in (("a.npz", 2), ("b.npz", 7)):
        write_npz(tmp_path / name, cut(PICTURES, size), 7, PICTURES.shape[1:], np.arange(7))
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    assert open_pictures(tmp_path / "a.npz").digest == open_pictures(tmp_path / "b.npz").digest


@pytest.mark.parametrize(
    ("batches", "labels", "message"),
    [
        ([PICTURES[:6]], None, "7 images were to come; 6 came"),
        ([PICTURES, PICTURES], None, "7 images, .* were to come; 14 of"),
        ([PICTURES[..., :1]], None, r"7 of uint8 \(4, 5, 1\) came"),
        ([PICTURES.astype(np.float32)], None, "float32"),
        ([PICTURES], np.arange(6), "as many labels"),
    ],
)
def test_a_file_is_whole_or_absent(tmp_path, batches, labels, message):
    with pytest.raises(InputError, match=message):
        write_npz(tmp_path / "x.npz", iter(batches), 7, (4, 5, 3), labels)
    assert not list(tmp_path.iterdir())


def savez(**arrays):
    def save(path):
        np.savez(path, **arrays)

    return save


def truncated(path):
    np.savez(path, PICTURES)
    path.write_bytes(path.read_bytes()[:-200])


def shortened_member(path):
    whole = io.BytesIO()
    np.save(whole, PICTURES)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", whole.getvalue()[:-10])


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (truncated, "is damaged or no .npz"),
        (shortened_member, "is damaged: arr_0 is shorter"),
        (lambda path: path.write_bytes(b"words"), "is damaged or no .npz"),
        (savez(samples=PICTURES), "has no arr_0, only samples; ADM's format"),
        (savez(arr_0=PICTURES.astype(np.float32)), "arr_0 is float32 .* where uint8"),
        (savez(arr_0=PICTURES[..., 0]), r"arr_0 is uint8 \(7, 4, 5\), where uint8 \(N, height, width, 3 or 1\)"),
        (savez(arr_0=np.zeros((2, 4, 5, 4), np.uint8)), "where uint8"),
        (savez(arr_0=PICTURES[:0]), "holds no images"),
        (savez(arr_0=np.asfortranarray(PICTURES)), "Fortran"),
        (savez(arr_0=np.array([PICTURES, None], object)), "arr_0 is object"),
        (savez(arr_0=PICTURES, arr_1=np.array([{}] * 7, object)), "no .npz of plain arrays .*Object arrays cannot"),
        (savez(arr_0=PICTURES, arr_1=np.zeros(7)), "arr_1 is float64"),
        (savez(arr_0=PICTURES, arr_1=np.arange(6)), r"arr_1 is int64 \(6,\), where the classes of 7"),
        (
            savez(arr_0=PICTURES, mu=np.zeros(3), sigma=np.eye(2)),
            r"mu \(3,\), sigma \(2, 2\), where mu \(F,\) and sigma",
        ),
        (savez(arr_0=PICTURES, mu=np.zeros(3)), r"mu \(3,\), where mu \(F,\) and sigma \(F, F\) are expected"),
        (savez(arr_0=PICTURES, sigma_s=np.eye(3)), r"sigma_s \(3, 3\), where mu_s"),
        (savez(arr_0=PICTURES, mu=np.zeros(2), sigma=np.full((2, 2), np.nan)), "mu or sigma holds what is no number"),
        (savez(arr_0=PICTURES, mu_s=np.full(2, np.inf), sigma_s=np.eye(2)), "mu_s or sigma_s holds what is no number"),
        (savez(mu=np.zeros(2), sigma=np.eye(2)), "has no arr_0, only mu, sigma"),
    ],
)
def test_a_bad_npz_is_named_in_one_line(tmp_path, save, message):
    path = tmp_path / "bad.npz"
    save(path)
    with pytest.raises(InputError, match=message) as raised:
        open_pictures(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_reference_is_of_the_size_of_the_samples_and_named_by_its_content(tmp_path):
    square = np.random.default_rng(1).integers(0, 256, (3, 6, 6, 3), np.uint8)
    for name in ("a.npz", "elsewhere.npz"):
        np.savez(tmp_path / name, square, mu=np.zeros(2), sigma=np.eye(2))
    for number, picture in enumerate(square):
        paint(tmp_path / "folder" / f"{number}.png", picture)
    first, again, folder = (open_reference(tmp_path / name, 6) for name in ("a.npz", "elsewhere.npz", "folder"))
    assert first.digest == again.digest
    assert first.statistics is not None
    assert folder.statistics is folder.spatial_statistics is None
    np.testing.assert_array_equal(read(folder), square)
    np.savez(tmp_path / "a.npz", square, mu=np.ones(2), sigma=np.eye(2))
    assert open_reference(tmp_path / "a.npz", 6).digest != again.digest
    with pytest.raises(InputError, match=r"a\.npz has images of 6 x 6 pixels, the samples are of 8 x 8; give a ref"):
        open_reference(tmp_path / "a.npz", 8)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_changed_byte_is_found_as_the_pictures_are_read(tmp_path, compression):
    path = tmp_path / "changed.npz"
    member = io.BytesIO()
    np.save(member, np.zeros((50, 4, 5, 3), np.uint8))
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("arr_0.npy", member.getvalue())
        size = archive.getinfo("arr_0.npy").compress_size
    content = bytearray(path.read_bytes())
    content[30 + len("arr_0.npy") + size - 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"changed\.npz is damaged"):
        read(open_pictures(path))


def paint(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_folder_is_read_in_sorted_order_and_its_subfolders_are_classes(tmp_path):
    for number, name in enumerate(["b/0.png", "a/1.png", "a/deep/2.png", "b/10.png"]):
        paint(tmp_path / name, PICTURES[number])
    (tmp_path / "a" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "a" / "notes.txt").write_text("words")
    opened = open_pictures(tmp_path)
    np.testing.assert_array_equal(read(opened), PICTURES[[1, 2, 0, 3]])
    np.testing.assert_array_equal(read(opened, 1, first=2), PICTURES[[0, 3]])
    assert opened.class_names == ("a", "b")
    np.testing.assert_array_equal(opened.labels, [0, 0, 1, 1])
    before = opened.digest
    assert open_pictures(tmp_path).digest == before
    paint(tmp_path / "b" / "10.png", PICTURES[4])
    assert open_pictures(tmp_path).digest != before


def test_a_flat_folder_has_no_classes_and_grey_pictures_become_rgb(tmp_path):
    paint(tmp_path / "0.png", PICTURES[0, ..., 0])
    paint(tmp_path / "1.png", PICTURES[1])
    opened = open_pictures(tmp_path)
    assert opened.labels is opened.class_names is None
    np.testing.assert_array_equal(read(opened)[0], np.repeat(PICTURES[0, ..., :1], 3, -1))


def test_pictures_of_different_sizes_are_refused_by_name(tmp_path):
    paint(tmp_path / "0.png", PICTURES[0])
    paint(tmp_path / "1.png", PICTURES[0])
    paint(tmp_path / "2.png", PICTURES[0, :3])
    with pytest.raises(InputError, match=r"2\.png is 5 x 3 pixels, but 0\.png is 5 x 4; all"):
        open_pictures(tmp_path)
    paint(tmp_path / "2.png", PICTURES[0].swapaxes(0, 1))
    with pytest.raises(InputError, match=r"2\.png is \(5, 4, 3\), but 0\.png is \(4, 5, 3\)"):
        read(open_pictures(tmp_path))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_camera_picture_on_its_side_is_read_upright(tmp_path, orientation):
    stored, exif = PICTURES[1].swapaxes(0, 1) if orientation > 4 else PICTURES[1], Image.Exif()
    exif[0x0112] = orientation
    paint(tmp_path / "0.png", PICTURES[0])
    Image.fromarray(stored).save(tmp_path / "1.png", exif=exif)
    np.testing.assert_array_equal(read(open_pictures(tmp_path))[1], UPRIGHT[orientation](stored))


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names_of_pictures_and_classes_are_read(tmp_path, name):
    paint(tmp_path / "a" / "0.png", PICTURES[0])
    paint(tmp_path / name / name, PICTURES[1])
    opened = open_pictures(tmp_path)
    assert set(opened.class_names) == {"a", name}
    assert len(read(opened)) == len(opened.digest) / 32 == 2


def test_bad_folders_and_paths_are_one_line(tmp_path):
    with pytest.raises(InputError, match=f"no images under {tmp_path}; expected files"):
        open_pictures(tmp_path)
    with pytest.raises(InputError, match=r"no images at .*nowhere; give an .npz with arr_0, or a folder"):
        open_pictures(tmp_path / "nowhere")
    paint(tmp_path / "0.png", PICTURES[0])
    whole = (tmp_path / "0.png").read_bytes()
    for content in (b"words", b"", whole[:-30]):
        (tmp_path / "1.png").write_bytes(content)
        with pytest.raises(InputError, match=r"1\.png cannot be read as an image"):
            read(open_pictures(tmp_path))


@pytest.mark.parametrize("count", [0, 8])
def test_a_set_has_no_more_pictures_than_it_has(tmp_path, count):
    np.savez(tmp_path / "x.npz", PICTURES)
    with pytest.raises(InputError, match=f"holds 7 images, not {count}"):
        open_pictures(tmp_path / "x.npz").head(count)
