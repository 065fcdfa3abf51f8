import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from iar_study.config import DataConfig
from iar_study.data import folder as folder_module
from iar_study.data.images import load_images
from iar_study.errors import InputError

WHITE, RED, GREEN, BLUE = (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255)


def load(path, size=None):
    return load_images(DataConfig(name=f"folder:{path}", image_size=size))


def paint(path, color=RED, size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


@pytest.fixture
def flat(tmp_path):
    """CLASS/picture: 20 reds and 5 greens, each in a shade of its own."""
    for i in range(20):
        paint(tmp_path / "pictures" / "red" / f"{i:02}.png", (255 - i, 0, 0))
    for i in range(5):
        paint(tmp_path / "pictures" / "green" / f"{i:02}.png", (0, 255 - i, 0))
    return tmp_path / "pictures"


@pytest.fixture
def divided(tmp_path):
    """train/CLASS/picture and test/CLASS/picture."""
    for split, n in (("train", 3), ("test", 2)):
        for name, color in (("b", BLUE), ("a", GREEN)):
            for i in range(n):
                paint(tmp_path / "pictures" / split / name / f"{i}.png", color)
    return tmp_path / "pictures"


@pytest.fixture
def read_one(tmp_path):
    """Save a picture by `save(path)`, load it beside another class, and give it back as an array."""

    def read(name, save, size=8):
        root = tmp_path / "one"
        for split in ("train", "test"):
            paint(root / split / "other" / "x.png")
            (root / split / "this").mkdir(parents=True)
            save(root / split / "this" / name)
        images = load(root, size)
        np.testing.assert_array_equal(images.train, images.test)
        return images.train[1]

    return read


def test_given_splits_are_kept_in_sorted_order(divided):
    images = load(divided)
    assert images.class_names == ("a", "b")
    assert images.train.shape == (6, 32, 32, 3)
    assert images.test.shape == (4, 32, 32, 3)
    np.testing.assert_array_equal(images.train_labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(images.train[:, 0, 0], [GREEN] * 3 + [BLUE] * 3)


def test_any_first_part_of_the_held_out_pictures_holds_all_classes(tmp_path):
    colors = {"a": RED, "b": GREEN, "c": BLUE}
    for split in ("train", "test"):
        for name, color in colors.items():
            for i in range(20):
                paint(tmp_path / split / name / f"{i:02}.png", color)
    images = load(tmp_path, 8)
    assert set(images.test_labels[:20]) == {0, 1, 2}
    expected = np.array(list(colors.values()))[images.test_labels]
    np.testing.assert_array_equal(images.test[:, 0, 0], expected, "every image keeps its own class")


def test_a_flat_folder_is_split_by_class(flat):
    images = load(flat, 8)
    assert images.class_names == ("green", "red")
    np.testing.assert_array_equal(np.bincount(images.train_labels), [4, 18])
    np.testing.assert_array_equal(np.bincount(images.test_labels), [1, 2])
    colors = np.concatenate([images.train, images.test])[:, 0, 0]
    assert len(np.unique(colors, axis=0)) == 25, "every image is in one split"
    assert (images.train[images.train_labels == 1, 0, 0, 0] > 200).all()


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(2, 60), min_size=1, max_size=5))
def test_the_split_takes_a_tenth_and_at_least_one_of_every_class(counts):
    classes = {
        str(c): [folder_module.Picture(f"{c}/{i}", 0, 0) for i in range(count)] for c, count in enumerate(counts)
    }
    train, test = folder_module._split(classes)
    for name, pictures in classes.items():
        assert sorted(train[name] + test[name]) == sorted(pictures)
        assert train[name]
        assert len(test[name]) == max(1, round(len(pictures) / 10))
    assert folder_module._split(classes) == (train, test)


def test_other_files_are_passed_over(divided):
    for name in (".hidden.png", "Thumbs.db", ".DS_Store", "notes.txt", "._0.png"):
        (divided / "train" / "a" / name).write_bytes(b"no image")
    (divided / "train" / ".cache").mkdir()
    (divided / "train" / "empty").mkdir()
    (divided / "readme.md").write_text("words")
    assert load(divided).class_names == ("a", "b")
    assert len(load(divided).train) == 6


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_the_short_side_is_resized_and_the_centre_kept(read_one, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = read_one("noise.png", Image.fromarray(noise).save).astype(int)
    small = Image.fromarray(noise).resize((size[0] // 4, size[1] // 4), Image.Resampling.LANCZOS)
    left, top = (small.width - 8) // 2, (small.height - 8) // 2
    assert abs(picture - np.asarray(small.crop((left, top, left + 8, top + 8)))).max() <= 1


def test_pictures_of_the_right_size_are_not_resampled(read_one):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_one("noise.png", Image.fromarray(noise).save), noise)


def test_shrinking_averages(read_one):
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert abs(read_one("checkers.png", Image.fromarray(checkers).save).astype(int) - 127).max() < 10


def grey16(path):
    Image.fromarray(np.full((8, 8), 200 * 256 + 17, np.uint16)).save(path)


def palette_with_transparency(path):
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.save(path, transparency=1)


def big_endian_grey16(path):
    Image.frombytes("I;16B", (8, 8), np.full((8, 8), 200 * 256 + 17, ">u2").tobytes()).save(path)


def png16(colour_type, *samples):
    """Save a PNG of 16 bits a sample, which Pillow itself does not write in colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def save(path):
        header = struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0)
        pixels = zlib.compress((b"\0" + struct.pack(f">{len(samples)}H", *samples) * 8) * 8)
        content = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)

    return save


def animation(path, mode="RGB", colors=(GREEN, RED)):
    first, second = (Image.new(mode, (8, 8), color) for color in colors)
    first.save(path, save_all=True, append_images=[second], lossless=True)


def clear_animation(path):
    animation(path, "RGBA", ((*RED, 0), (*GREEN, 255)))


@pytest.mark.parametrize(
    ("name", "save", "color"),
    [
        ("grey.png", Image.new("L", (8, 8), 77).save, (77, 77, 77)),
        ("bits.png", Image.new("1", (8, 8), 1).save, WHITE),
        ("grey16.png", grey16, (200, 200, 200)),
        ("grey16.tif", grey16, (200, 200, 200)),
        ("clear.png", Image.new("RGBA", (8, 8), (*RED, 0)).save, WHITE),
        ("half.png", Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save, (127, 127, 127)),
        ("grey_alpha.png", Image.new("LA", (8, 8), (0, 0)).save, WHITE),
        ("palette.png", Image.new("RGB", (8, 8), BLUE).quantize(4).save, BLUE),
        ("palette_clear.png", palette_with_transparency, WHITE),
        ("cmyk.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save, RED),
        ("cmyk.tiff", Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save, RED),
        ("grey16_big.tif", big_endian_grey16, (200, 200, 200)),
        ("grey16_alpha.png", png16(4, 200 * 256, 0), WHITE),
        ("colour16.png", png16(2, 200 * 256 + 17, 100 * 256, 50 * 256), (200, 100, 50)),
        ("colour16_alpha.png", png16(6, 0, 0, 0, 0), WHITE),
        ("grey_alpha.tiff", Image.new("LA", (8, 8), (0, 0)).save, WHITE),
        ("palette_alpha.tif", lambda path: Image.new("RGBA", (8, 8)).convert("PA").save(path), WHITE),
        ("clear.webp", Image.new("RGBA", (8, 8), (*RED, 0)).save, WHITE),
        ("luma.jpg", Image.new("YCbCr", (8, 8), (128, 128, 128)).save, (128, 128, 128)),
        *((f"animation.{kind}", animation, GREEN) for kind in ("gif", "webp", "png", "tiff")),
        *((f"clear_animation.{kind}", clear_animation, WHITE) for kind in ("gif", "webp", "png")),
        ("picture.bmp", Image.new("RGB", (8, 8), GREEN).save, GREEN),
        ("picture.JPEG", Image.new("RGB", (8, 8), WHITE).save, WHITE),
        ("picture.webp", lambda path: Image.new("RGB", (8, 8), GREEN).save(path, lossless=True), GREEN),
    ],
)
def test_every_mode_becomes_rgb(read_one, name, save, color):
    picture = read_one(name, save).astype(int)
    assert abs(picture - np.array(color)).max() <= 2


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
"""EXIF orientation -> how the stored pixels are to be shown."""


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["turned.png", "turned.tiff", "turned.webp"])
def test_exif_orientation_is_applied(read_one, name, orientation):
    stored, exif = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), Image.Exif()
    exif[0x0112] = orientation
    picture = read_one(name, lambda path: Image.fromarray(stored).save(path, exif=exif, lossless=True))
    np.testing.assert_array_equal(picture, UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(read_one, orientation):
    stored, exif = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_one("x.png", lambda path: Image.fromarray(stored).save(path, exif=exif)), stored)


def long(name):
    return name + "x" * (255 - len(name.encode()) - len(".png")) + ".png"


ODD_NAMES = [
    "two words.png",
    "ü 漢字 🙂.png",
    long("a"),
    long("漢"),
    "quote\"'.png",
    "-dash %s {0} [red].png",
    "new\nline.png",
    os.fsdecode(b"\xff\xfe.png"),
]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_odd_names_of_pictures_and_classes_are_read(tmp_path, name):
    for folder in ("a", name):
        for other in (name, "0.png"):
            paint(tmp_path / folder / other, GREEN)
    images = load(tmp_path, 8)
    assert set(images.class_names) == {"a", name}
    assert load(tmp_path, 8).digest == images.digest


def test_decoded_pictures_are_kept_until_a_file_changes(divided, monkeypatch):
    first = load(divided)
    read_picture = folder_module.read_picture
    monkeypatch.setattr(folder_module, "read_picture", None)
    assert load(divided).digest == first.digest, "without decoding"
    monkeypatch.setattr(folder_module, "read_picture", read_picture)
    assert load(divided, 16).size == 16
    changed = divided / "train" / "a" / "0.png"
    paint(changed, RED)
    os.utime(changed, ns=(1, 1))
    assert load(divided).digest != first.digest


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty"])
def test_a_damaged_cache_is_rebuilt(divided, data_home, capsys, damage):
    first = load(divided)
    [kept] = (data_home / "folders").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(
        {"truncated": content[:-100], "altered": content[:-1] + bytes([content[-1] ^ 1]), "empty": b""}[damage]
    )
    assert load(divided).digest == first.digest
    assert f"{kept} is damaged" in capsys.readouterr().err
    assert load(divided).digest == first.digest
    assert capsys.readouterr().err == ""


def test_without_a_writable_cache_pictures_are_still_read(divided, data_home, capsys):
    data_home.write_text("a file in the way")
    assert len(load(divided).train) == 6
    assert "not kept" in capsys.readouterr().err


def test_the_path_may_start_at_home(divided, monkeypatch):
    monkeypatch.setenv("HOME", str(divided.parent))
    assert len(load("~/pictures").train) == 6


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere cannot be read .No such file"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"{tmp_path}/file cannot be read .Not a directory"):
        load(tmp_path / "file")


def test_a_folder_without_classes_says_what_is_expected(tmp_path):
    paint(tmp_path / "loose" / "0.png")
    with pytest.raises(InputError, match=r"no images under .*/loose; expected .*/loose/CLASS/IMAGE"):
        load(tmp_path / "loose")


def test_one_picture_is_too_few(tmp_path):
    paint(tmp_path / "p" / "a" / "0.png")
    with pytest.raises(InputError, match="only one image under"):
        load(tmp_path / "p")


def test_one_class_is_too_few(tmp_path):
    for name in ("p/a/0", "p/a/1", "q/train/a/0", "q/test/a/0"):
        paint(tmp_path / f"{name}.png")
    for root in ("p", "q"):
        with pytest.raises(InputError, match=r"only one class \(a\)"):
            load(tmp_path / root)


def test_a_class_of_one_picture_cannot_be_split(flat):
    paint(flat / "blue" / "0.png", BLUE)
    with pytest.raises(InputError, match=r"only one image of blue under .*needs two"):
        load(flat)


def test_splits_with_different_classes_are_refused(divided):
    paint(divided / "train" / "c" / "0.png")
    paint(divided / "test" / "d" / "0.png")
    with pytest.raises(InputError, match=r"c \(only in train\), d \(only in test\)"):
        load(divided)


def test_a_class_folder_without_pictures_is_no_class_of_its_split(divided):
    (divided / "train" / "c").mkdir()
    (divided / "test" / "c").mkdir()
    (divided / "test" / "c" / "notes.txt").write_text("words")
    assert load(divided).class_names == ("a", "b")
    paint(divided / "train" / "c" / "0.png")
    with pytest.raises(InputError, match=r"images of the same classes, but differ: c \(only in train\)"):
        load(divided)


def test_a_lone_split_is_pointed_out(divided):
    (divided / "test").rename(divided / "val")
    with pytest.raises(InputError, match=r"has train/ but no test/: add it, or give folder:.*/train"):
        load(divided)
    assert len(load(divided / "train").train) == 4


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "tiff", "bmp"])
@pytest.mark.parametrize("content", ["truncated", "words", "empty"])
def test_an_unreadable_picture_is_named(divided, data_home, kind, content):
    path = divided / "test" / "a" / f"9.{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "words": b"no image", "empty": b""}[content])
    with pytest.raises(InputError, match=f"^{path} cannot be read as an image .*; repair or remove it"):
        load(divided)
    assert not data_home.exists(), "nothing is kept of a folder that could not be read"


def test_a_dangling_link_is_named(divided):
    (divided / "train" / "a" / "9.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match=r"9\.png cannot be read"):
        load(divided)


def test_floats_have_no_known_range(divided):
    Image.new("F", (8, 8), 0.5).save(divided / "train" / "a" / "f.tiff")
    with pytest.raises(InputError, match=r"f\.tiff cannot be read as an image .32 bits"):
        load(divided)
