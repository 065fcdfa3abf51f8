"""One's own images to codes: LlamaGen's crops in LlamaGen's order, the tokens of each, and going on after a kill."""

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iar_study.cli import main
from iar_study.config import DataConfig, TokenizerConfig
from iar_study.data.encoding import center_crop, extract_codes, ten_crops, views
from iar_study.data.images import load_images
from iar_study.data.llamagen_codes import open_codes
from iar_study.errors import InputError
from iar_study.storage import save_arrays
from iar_study.tokenizers.given import load_tokenizer
from iar_study.tokenizers.patch_vq import PatchVQ
from iar_study.tokenizers.vq import VQConfig, VQModel, to_float
from tests import forked

SMALL = VQConfig(multipliers=(1, 1), channels=32, z_channels=8, codebook_size=300, code_dim=4)


@pytest.fixture(scope="module")
def model() -> VQModel:
    torch.manual_seed(0)
    return VQModel(SMALL).eval()


@pytest.fixture(scope="module")
def checkpoint(model: VQModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "vq.pt"
    model.save_llamagen(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of noise, of several shapes and modes."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, n in (("train", 5), ("test", 2)):
        for name in ("b", "a"):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                height, width = 20 + 7 * i, 40 - 5 * i
                noise = Image.fromarray(rng.integers(256, size=(height, width, 3), dtype=np.uint8))
                noise.convert("L" if i == 1 else "RGB").save(root / split / name / f"{i}.png")
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_ten_crops_are_in_torchvisions_order() -> None:
    square = np.arange(11 * 11).reshape(11, 11, 1)
    top, middle, mirrored = slice(0, 8), slice(2, 10), square[:, ::-1]  # round(1.5) is 2, as in torchvision
    bottom = slice(3, 11)
    expected = [
        image[rows, columns]
        for image in (square, mirrored)
        for rows, columns in ((top, top), (top, bottom), (bottom, top), (bottom, bottom), (middle, middle))
    ]
    np.testing.assert_array_equal(ten_crops(square, 8), expected)
    assert ten_crops(square, 8)[5, 0, 0, 0] == 10  # the mirrored picture's top left is the picture's top right


def test_the_center_crop_is_the_central_square() -> None:
    pixels = np.zeros((8, 13, 3), np.uint8)
    pixels[:, 2:10] = np.arange(8)[:, None]
    np.testing.assert_array_equal(center_crop(Image.fromarray(pixels), 8), pixels[:, 2:10])
    assert center_crop(Image.fromarray(pixels), 5).shape == (5, 5, 3)
    assert center_crop(Image.fromarray(pixels[..., 0]), 32).shape == (32, 32, 1)


def test_a_large_picture_is_halved_by_box_averages_first() -> None:
    pixels = np.random.default_rng(1).integers(256, size=(33, 50, 3), dtype=np.uint8)
    once = Image.fromarray(pixels).resize((25, 16), Image.Resampling.BOX)  # 33 >= 2 * 16, then 16 < 2 * 16
    np.testing.assert_array_equal(center_crop(Image.fromarray(pixels), 16), np.asarray(once)[:, 4:20])


def test_views() -> None:
    picture = Image.fromarray(np.random.default_rng(2).integers(256, size=(20, 30, 3), dtype=np.uint8))
    plain, flipped = views(picture, 16, "none", 1.1), views(picture, 16, "flip", 1.1)
    crops = views(picture, 16, "ten-crop", 1.1)
    assert (plain.shape, flipped.shape, crops.shape) == ((1, 16, 16, 3), (2, 16, 16, 3), (10, 16, 16, 3))
    np.testing.assert_array_equal(plain[0], center_crop(picture, 16))
    np.testing.assert_array_equal(flipped, [plain[0], plain[0][:, ::-1]])
    np.testing.assert_array_equal(crops[3], center_crop(picture, 17)[1:, 1:])  # int(16 * 1.1) = 17
    np.testing.assert_array_equal(crops[5:9], crops[[1, 0, 3, 2]][:, :, ::-1])


def test_every_view_of_every_picture_is_encoded_in_order(model: VQModel, pictures: Path, tmp_path: Path) -> None:
    seen = []
    found = extract_codes(
        str(pictures), model, tmp_path / "codes", image_size=16, batch=4, progress=lambda *at: seen.append(at[:3])
    )
    train, test = found["train"], found["test"]
    assert (train.codes.shape, test.codes.shape) == ((10, 10, 64), (4, 1, 64))
    assert train.codes.dtype == np.int16
    np.testing.assert_array_equal(train.labels, [0] * 5 + [1] * 5)
    assert train.index["class_names"] == ["a", "b"]
    assert train.index["source"]["augmentation"] == "ten-crop"
    assert seen[0] == ("encoding train", 0, 10)
    assert seen[-1] == ("encoding test", 4, 4)
    for number, name in enumerate(f"{c}/{i}.png" for c in "ab" for i in range(5)):
        picture = Image.open(pictures / "train" / name).convert("RGB")
        expected = model.encode(to_float(views(picture, 16, "ten-crop", 1.1)))
        np.testing.assert_array_equal(train.codes[number], expected.flatten(1).numpy())
    loaded = load_images(DataConfig(name=f"folder:{pictures}", image_size=16))  # in the order of a study
    np.testing.assert_array_equal(test.labels, loaded.test_labels)


def test_the_codes_are_the_same_as_a_studys_on_a_named_set(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = TokenizerConfig(codebook_size=40, channels=8, patch=2)
    path = tmp_path / "tokenizer.safetensors"
    arrays = {name: tensor.numpy() for name, tensor in PatchVQ(config, 1).state_dict().items()}
    save_arrays(path, arrays, {"config": asdict(config), "channels": 1})
    tokenizer = load_tokenizer(path)
    found = extract_codes("digits", tokenizer, tmp_path / "codes", augmentation="flip", batch=500)
    digits = load_images(DataConfig(name="digits"))
    assert found["train"].codes.dtype == np.uint8
    for view, images in enumerate((digits.train, digits.train[:, :, ::-1])):
        expected = tokenizer.encode(to_float(np.ascontiguousarray(images))).flatten(1).numpy()
        np.testing.assert_array_equal(found["train"].codes[:, view], expected)
    np.testing.assert_array_equal(found["test"].codes[:, 0], tokenizer.encode(to_float(digits.test)).flatten(1))
    np.testing.assert_array_equal(found["test"].labels, digits.test_labels)


def test_grey_images_are_given_to_a_tokenizer_for_colour(model: VQModel, tmp_path: Path) -> None:
    found = extract_codes("digits", model, tmp_path / "codes", augmentation="none", batch=500)
    first = np.repeat(load_images(DataConfig(name="digits")).train[:1], 3, axis=-1)
    np.testing.assert_array_equal(found["train"].codes[0, 0], model.encode(to_float(first)).ravel())


KILLED = """
import os, signal, sys
from iar_study.cli import main
from iar_study.tokenizers.vq import VQModel
encode, calls, count = VQModel.encode, 0, int(sys.argv.pop(1))

def encode_or_die(*arguments):
    global calls
    calls += 1
    if calls > count:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments)

VQModel.encode = encode_or_die
main(sys.argv[1:])
"""


def test_the_command_killed_at_any_time_goes_on_to_the_same_bytes(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def command(folder: Path) -> list[str]:
        options = ["--image-size", "16", "--batch", "3", "--device", "cpu"]
        return ["encode", str(pictures), "--tokenizer", str(checkpoint), "-o", str(folder), *options]

    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert main(command(tmp_path / "whole")) == 0
    assert "train: 10 images x 10 augmentations x 64 tokens" in capsys.readouterr().out
    for count in (23, 20 + 1):  # batches of views before the kill: inside train, then inside test
        script = [sys.executable, "-c", KILLED, str(count), *command(tmp_path / "codes")]
        killed = subprocess.run(script, check=False, env=one_thread)
        assert killed.returncode == -signal.SIGKILL
    assert open_codes(tmp_path / "codes" / "train", check_content=True).index["images"] == 10
    assert not (tmp_path / "codes" / "test").exists()
    assert main(command(tmp_path / "codes")) == 0
    assert content(tmp_path / "codes") == content(tmp_path / "whole")


def run(*arguments: str) -> None:
    sys.exit(main(list(arguments)))


def test_one_split_alone_and_two_processes_give_the_same_bytes(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    """Of ten and four pictures, three at once: the last round has less than two batches."""
    options = ["--tokenizer", str(checkpoint), "--image-size", "16", "--batch", "3", "--device", "cpu"]
    given = ["encode", str(pictures), *options, "-o"]
    assert main([*given, str(tmp_path / "one"), "--split", "test"]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["test"]
    assert main([*given, str(tmp_path / "one")]) == 0
    for _ in range(2):  # and once more, where all is there
        assert forked.exit_code(forked.start_two(run, *given, str(tmp_path / "two"))) == 0
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_other_settings_are_not_mixed_in(model: VQModel, pictures: Path, tmp_path: Path) -> None:
    extract_codes(str(pictures), model, tmp_path / "codes", image_size=16)
    with pytest.raises(InputError, match=r"source\.crop_range differ"):
        extract_codes(str(pictures), model, tmp_path / "codes", image_size=16, crop_range=1.05)
    other = VQModel(SMALL).eval()
    with pytest.raises(InputError, match=r"source\.tokenizer differ"):
        extract_codes(str(pictures), other, tmp_path / "codes", image_size=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere cannot be read"),
        (["digits", "--tokenizer", "no.pt"], "no file at no.pt"),
        (["digits", "--tokenizer", "no.safetensors"], "no.safetensors cannot be read"),
        (["digits", "--image-size", "15"], "images of 15 pixels do not divide into patches of 2"),
        (["digits", "--batch", "0"], "batch 0"),
        (["digits", "--crop-range", "0.9"], "crop range 0.9"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert main(["encode", "--tokenizer", str(checkpoint), "-o", str(tmp_path / "codes"), *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "codes").exists()


def test_a_damaged_picture_is_named_and_the_command_goes_on_when_it_is_mended(model: VQModel, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "p" / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 20), "red" if name == "a" else "blue").save(tmp_path / "p" / split / name / "x.png")
    broken = tmp_path / "p" / "train" / "b" / "x.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:20])
    with pytest.raises(InputError, match=r"b/x\.png cannot be read as an image"):
        extract_codes(str(tmp_path / "p"), model, tmp_path / "codes", image_size=16)
    assert not (tmp_path / "codes" / "train").exists()
