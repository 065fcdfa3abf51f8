"""Extractors: shapes, channels, and that no other network can pass for Inception. torch-fidelity is a stand-in here."""

import hashlib
import os
import pickle
import sys
import types

import numpy as np
import pooch
import pytest
import torch
from torch import nn

from iar_study.config import ClassifierConfig
from iar_study.errors import InputError
from iar_study.evaluation import features as module
from iar_study.evaluation.classifier import FEATURES, Classifier, classify
from iar_study.evaluation.features import ClassifierFeatures, extract_all, load_extractor, with_channels

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
COLOURED = RNG.integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)


def classifier(channels):
    torch.manual_seed(0)
    return Classifier(ClassifierConfig(channels=4), channels, 5).eval()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_classifier_gives_its_features_and_probabilities(channels):
    model = classifier(channels)
    images = np.repeat(GREY, channels, -1)
    features, probabilities = ClassifierFeatures(model, "classifier-0")(images)
    expected, predicted = classify(model, images)
    np.testing.assert_array_equal(features, expected)
    np.testing.assert_array_equal(probabilities.argmax(1), predicted)
    assert (features.dtype, probabilities.dtype) == (np.float32, np.float32)
    assert (features.shape, probabilities.shape) == ((6, FEATURES), (6, 5))
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_grey_is_grey_in_one_channel_or_three():
    grey, repeated = classifier(1), np.repeat(GREY, 3, -1)
    np.testing.assert_array_equal(
        ClassifierFeatures(grey, "grey")(repeated)[0], ClassifierFeatures(grey, "grey")(GREY)[0]
    )
    coloured = ClassifierFeatures(classifier(3), "coloured")
    np.testing.assert_array_equal(coloured(repeated)[0], coloured(GREY)[0])
    with pytest.raises(InputError, match="coloured, but the classifier was trained on grey"):
        ClassifierFeatures(grey, "grey")(COLOURED)


def test_channels_that_fit_are_not_copied():
    assert with_channels(COLOURED, 3) is COLOURED


def test_features_are_streamed_and_counted():
    extractor, seen = ClassifierFeatures(classifier(1), "grey"), []
    batches = (GREY[i : i + 4] for i in range(0, 6, 4))
    features, probabilities, _ = extract_all(extractor, batches, 6, lambda *at: seen.append(at[:2]))
    assert seen == [(4, 6), (6, 6)]
    parts = [extractor(GREY[:4]), extractor(GREY[4:])]
    np.testing.assert_array_equal(features, np.concatenate([part[0] for part in parts]))
    np.testing.assert_array_equal(probabilities, np.concatenate([part[1] for part in parts]))


@pytest.mark.parametrize(("batches", "came"), [([], 0), ([GREY[:4]], 4), ([GREY, GREY], 12)])
def test_more_or_fewer_pictures_are_refused(batches, came):
    with pytest.raises(InputError, match=f"6 images were to come, {came} came"):
        extract_all(ClassifierFeatures(classifier(1), "grey"), iter(batches), 6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("incepton", "unknown extractor 'incepton'; did you mean 'inception'?"),
        ("dinov2:file", "unknown extractor 'dinov2:file'"),
        ("set", "made of a data set; without one, use inception"),
        ("classifier", "unknown extractor 'classifier'; known: set"),
    ],
)
def test_what_cannot_be_had_says_what_can(spec, message):
    with pytest.raises(InputError, match=message):
        load_extractor(spec, "cpu")


class StandIn(nn.Module):
    """torch-fidelity's Inception by its signature: uint8 (B, 3, H, W) -> a tuple of the features asked for."""

    def __init__(
        self, name, features_list, feature_extractor_weights_path=None, feature_extractor_internal_dtype=None, **kwargs
    ):
        super().__init__()
        assert (name, features_list) == ("inception-v3-compat", ["2048", "logits_unbiased"])
        self.conv, self.fc = nn.Conv2d(3, 2048, 3), nn.Linear(2048, 1008)
        self.Mixed_6d = nn.Module()
        self.Mixed_6d.branch1x1 = nn.AdaptiveAvgPool2d(17)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        maps = self.conv(x.float() / 128 - 1)
        self.Mixed_6d.branch1x1(maps)
        pooled = maps.mean((2, 3))
        return pooled, pooled @ self.fc.weight.T


@pytest.fixture
def fidelity(monkeypatch):
    """A torch_fidelity to import, with the stand-in."""
    package, inner = (types.ModuleType(f"torch_fidelity{end}") for end in ("", ".feature_extractor_inceptionv3"))
    package.__path__ = []
    inner.FeatureExtractorInceptionV3 = StandIn
    for each in (package, inner):
        monkeypatch.setitem(sys.modules, each.__name__, each)


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The file that counts as the published one."""
    torch.manual_seed(0)
    path, fc, conv = tmp_path / "weights.pth", nn.Linear(2048, 1008), nn.Conv2d(3, 2048, 3)
    torch.save({f"{n}.{k}": v for n, m in (("fc", fc), ("conv", conv)) for k, v in m.state_dict().items()}, path)
    publish(path, monkeypatch)
    return path


def publish(path, monkeypatch):
    monkeypatch.setattr(module, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("images", [GREY, COLOURED], ids=["grey", "coloured"])
def test_inception_gives_features_and_the_softmax_of_its_logits(fidelity, weights, images):
    extractor = load_extractor(f"inception:{weights}", "cpu")
    features, probabilities, spatial = extractor(images)
    assert extractor.name == "inception"
    assert (features.shape, probabilities.shape) == ((6, 2048), (6, 1008))
    assert features.dtype == probabilities.dtype == np.float32
    logits = torch.from_numpy(features) @ torch.load(weights, weights_only=True)["fc.weight"].T
    np.testing.assert_allclose(probabilities, logits.softmax(1), rtol=1e-4)
    with torch.no_grad():
        pixels = torch.from_numpy(with_channels(images, 3)).permute(0, 3, 1, 2)
        maps = nn.functional.adaptive_avg_pool2d(extractor.network.conv(pixels.float() / 128 - 1), 17).numpy()
    assert (spatial.shape, spatial.dtype) == ((6, 2023), np.float32)
    for place, row, column, channel in ((0, 0, 0, 0), (6, 0, 0, 6), (7, 0, 1, 0), (17 * 7 + 2, 1, 0, 2)):
        np.testing.assert_allclose(spatial[:, place], maps[:, channel, row, column], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(extractor(images).spatial, spatial)
    assert "7 channels of Mixed_6d.branch1x1" in extractor.identity
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_all_that_is_seen_is_streamed(fidelity, weights):
    extractor = load_extractor(f"inception:{weights}", "cpu")
    seen = extract_all(extractor, (GREY[i : i + 4] for i in range(0, 6, 4)), 6)
    for found, first, last in zip(seen, extractor(GREY[:4]), extractor(GREY[4:]), strict=True):
        np.testing.assert_array_equal(found, np.concatenate([first, last]))
    features, probabilities, _ = extract_all(extractor, [GREY[:4], GREY[4:]], 6)
    np.testing.assert_array_equal(features, seen.features)
    np.testing.assert_array_equal(probabilities, seen.probabilities)
    assert extract_all(ClassifierFeatures(classifier(1), "classifier-0"), [GREY], 6).spatial is None


def test_spatial_features_are_of_the_block_that_adm_takes(tmp_path, monkeypatch):
    inner = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=ImportError)
    torch.manual_seed(0)
    path = tmp_path / "w.pth"
    with monkeypatch.context() as without_weights:
        without_weights.setattr(inner, "load_state_dict_from_url", lambda *_, **__: None)
        without_weights.setattr(inner.FeatureExtractorInceptionV3, "load_state_dict", lambda self, content: None)
        network = inner.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(network.state_dict(), path)
    publish(path, monkeypatch)
    extractor = load_extractor(f"inception:{path}", "cpu")
    seen = extractor(COLOURED[:2])
    assert [each.shape for each in seen] == [(2, 2048), (2, 1008), (2, 2023)]

    # The 1x1 branch of TensorFlow's mixed_6: after mixed ... mixed_5, a convolution, its batch norm, and a ReLU.
    resize = inner.interpolate_bilinear_2d_like_tensorflow1x
    net = extractor.network
    with torch.no_grad():
        x = resize(torch.from_numpy(COLOURED[:2]).permute(0, 3, 1, 2).float(), size=(299, 299), align_corners=False)
        x = (x - 128) / 128
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"):
            x = getattr(net, name)(x)
        x = net.MaxPool_2(x)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c"):
            x = getattr(net, f"Mixed_{name}")(x)
        branch = net.Mixed_6d.branch1x1
        x = branch.bn(branch.conv(x)).clamp(min=0)
    assert x.shape == (2, 192, 17, 17)
    expected = np.moveaxis(x.numpy(), 1, -1)[..., :7].reshape(2, -1)
    np.testing.assert_allclose(seen.spatial, expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert seen.spatial.min() == 0
    assert len(np.unique(expected)) > 1000


def test_another_network_is_never_taken_for_inception(fidelity, weights):
    weights.write_bytes(weights.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"is not the Inception of FID: its SHA-256 begins with \w{8}, not .*; delete"):
        load_extractor(f"inception:{weights}", "cpu")


def test_weights_that_are_code_are_not_run(fidelity, tmp_path, monkeypatch):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "exploded"), "w")

    path = tmp_path / "bomb.pth"
    torch.save({"conv.weight": Bomb()}, path, pickle_module=pickle)
    publish(path, monkeypatch)
    with pytest.raises(InputError, match="cannot be loaded from its weights"):
        load_extractor(f"inception:{path}", "cpu")
    assert not (tmp_path / "exploded").exists()


def test_a_file_that_is_not_there_is_named(fidelity, tmp_path):
    with pytest.raises(InputError, match=f"no file at {tmp_path}/nowhere.pth; the Inception weights are at https://"):
        load_extractor(f"inception:{tmp_path}/nowhere.pth", "cpu")


@pytest.mark.parametrize("spec", ["inception", "dinov2"])
def test_without_torch_fidelity_the_extra_is_named(spec, monkeypatch):
    for name in ("torch_fidelity", *(name for name in sys.modules if name.startswith("torch_fidelity."))):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"needs torch-fidelity.*pip install 'iar-study\[fidelity\]'") as raised:
        load_extractor(spec, "cpu")
    assert "\n" not in str(raised.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path / "hub" / "checkpoints"


def serve(monkeypatch, download):
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **options: lambda url, to, _: download(to, **options))


def test_the_weights_are_fetched_once_into_torch_hubs_folder(fidelity, weights, hub, monkeypatch):
    def download(to, progressbar, **_):
        content = weights.read_bytes()
        progressbar.total = len(content)
        progressbar.reset()
        progressbar.update(len(content))
        progressbar.close()
        with open(to, "wb") as file:
            file.write(content)

    serve(monkeypatch, download)
    seen = []
    first = load_extractor("inception", "cpu", progress=lambda *at: seen.append(at[:2]))
    assert seen == [(weights.stat().st_size, weights.stat().st_size)]
    assert [path.name for path in hub.iterdir()] == ["weights-inception-2015-12-05-6726825d.pth"]
    serve(monkeypatch, None)
    again = load_extractor("inception", "cpu")
    np.testing.assert_array_equal(first(GREY)[0], again(GREY)[0])


@pytest.mark.parametrize("kind", ["unreachable", "altered"])
def test_weights_that_cannot_be_fetched_are_told_where_to_put(fidelity, weights, hub, monkeypatch, kind):
    def download(to, **_):
        if kind == "unreachable":
            raise ConnectionError("a message\nof many lines")
        with open(to, "wb") as file:
            file.write(b"another file")

    serve(monkeypatch, download)
    with pytest.raises(
        InputError, match=r"could not be fetched .*: fetch https://.*pth elsewhere and put it"
    ) as raised:
        load_extractor("inception", "cpu")
    assert f"{hub}/weights-inception" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(hub.glob("*.pth"))


def test_dinov2_has_features_alone(fidelity, monkeypatch):
    class DinoV2(nn.Module):
        def __init__(self, name, features_list, **_):
            super().__init__()
            assert (name, features_list) == ("dinov2-vit-l-14", ["dinov2"])

        def forward(self, x):
            return (x.float().mean((2, 3)),)

    inner = types.ModuleType("torch_fidelity.feature_extractor_dinov2")
    inner.FeatureExtractorDinoV2 = DinoV2
    monkeypatch.setitem(sys.modules, inner.__name__, inner)
    extractor = load_extractor("dinov2", "cpu")
    features, probabilities, _ = extract_all(extractor, [COLOURED], 6)
    assert features.shape == (6, 3)
    assert probabilities is None
    assert extractor.name == "dinov2"

    def unreachable(self, *_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(DinoV2, "__init__", unreachable)
    with pytest.raises(InputError, match=r"'dinov2' cannot be loaded from torch.hub's facebookresearch/dinov2"):
        load_extractor("dinov2", "cpu")
