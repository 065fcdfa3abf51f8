"""The evaluators of a data set: made once, to the same bits after a kill, or shipped, and what is measured by them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iar_study.config import ClassifierConfig, DataConfig, TrialConfig, with_settings
from iar_study.data.images import Images, load_images
from iar_study.errors import InputError
from iar_study.evaluation.evaluators import load_evaluators
from iar_study.evaluation.metrics import BUILT_IN, SPATIAL, find_metric
from iar_study.pipeline import making, stages
from iar_study.pipeline.measuring import References, extractors_of, load_references, measure_pictures
from iar_study.pipeline.stages import evaluators_product
from iar_study.pipeline.workspace import Workspace
from iar_study.running.shipping import ship
from iar_study.storage import load_arrays, load_metadata, save_arrays
from iar_study.study.checks import check_settings
from tests.workspaces import BY_A_SET, evaluators_in

CONFIG = ClassifierConfig(channels=4, steps=20)


def nothing(*at):
    """No progress is shown."""


@pytest.fixture(scope="module")
def images() -> Images:
    digits = load_images(DataConfig("digits"))
    return replace(digits, train=digits.train[:300], train_labels=digits.train_labels[:300])


@pytest.fixture(scope="module")
def made(images, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "evaluators-whole.safetensors"
    making.make_evaluators(path, images, CONFIG, nothing)
    return path


def test_the_weights_in_memory_are_those_of_the_file_and_tell_classes(made, images):
    about, found = load_metadata(made), load_evaluators(made)
    assert found.name == f"set-{about['digest'][:8]}"
    for member, accuracy in zip(found.classifiers, about["accuracies"], strict=True):
        told = member(images.test)[1].argmax(1)
        assert (told == images.test_labels).mean() == accuracy > 0.2
    assert list(made.parent.iterdir()) == [made]


def test_sets_with_consecutive_seeds_share_no_classifier(made, images, tmp_path):
    making.make_evaluators(tmp_path / "other.safetensors", images, replace(CONFIG, seed=1), nothing)
    one, other = (load_evaluators(path) for path in (made, tmp_path / "other.safetensors"))
    assert len({member.name for member in (*one.classifiers, *other.classifiers)}) == 10
    assert one.components.name == other.components.name  # the images' own


@pytest.mark.parametrize("at", [1, 2])
def test_a_set_that_was_killed_goes_on_to_the_same_bits(made, images, tmp_path, keeping_all, at):
    seen = []

    def cut(what, done, total, detail):
        seen.append(what)
        if len(seen) == at:
            raise KeyboardInterrupt

    path = tmp_path / "evaluators-cut.safetensors"
    with pytest.raises(KeyboardInterrupt):
        making.make_evaluators(path, images, CONFIG, cut)
    assert not path.exists()
    making.make_evaluators(path, images, CONFIG, cut)
    assert load_metadata(path)["digest"] == load_metadata(made)["digest"]
    assert seen[at:] == [f"classifier {k + 1} of 5" for k in range(at - 1, 5)]  # those before are not trained again
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_package_ships_is_found_and_nothing_is_trained(images, tmp_path, monkeypatch):
    shipped = tmp_path / "fixed"
    ship(images, CONFIG, shipped / "digits.safetensors", nothing)
    assert [path.name for path in shipped.iterdir()] == ["digits.safetensors"]
    monkeypatch.setattr(stages, "SHIPPED", shipped)
    workspace = Workspace(tmp_path)
    frozen = evaluators_product(images, CONFIG, replace(workspace, frozen=True), nothing)
    assert (frozen, workspace.cache.exists()) == (shipped / "digits.safetensors", False)
    trained = []
    monkeypatch.setattr(making, "make_evaluators", lambda path, *_: trained.append(path))
    path = evaluators_product(images, CONFIG, workspace, nothing)
    assert path.read_bytes() == (shipped / "digits.safetensors").read_bytes()
    assert (path.parent, trained) == (workspace.cache, [])
    others = [
        (images, replace(CONFIG, seed=1)),
        (replace(images, name="x", test=images.test[:-1], test_labels=images.test_labels[:-1]), CONFIG),
    ]
    asked = [evaluators_product(*other, workspace, nothing) for other in others]
    assert trained == asked
    assert len({path, *asked}) == 3
    monkeypatch.setattr(stages, "RECIPE", stages.RECIPE + 1)
    assert evaluators_product(images, CONFIG, workspace, nothing) == trained[-1]


def trial(**settings) -> TrialConfig:
    return with_settings(TrialConfig(data=DataConfig("digits")), settings)


def test_fd_of_a_set_is_the_geometric_mean_over_all_its_members(made, images, tmp_path):
    evaluators, config = load_evaluators(made), trial()
    blurred = images.test // 3 * 2
    reference = References.of(extractors_of(config, evaluators), images.test, blurred)
    found = measure_pictures(blurred[:100], images.test_labels[:100], reference, evaluators, config)
    assert evaluators_in(found, 100) == BY_A_SET
    assert find_metric("fd", found) == f"fd/{evaluators.name}@100"
    members = [found[f"fd/{member.name}@100"] for member in evaluators.members]
    assert found[f"fd/{evaluators.name}@100"] == pytest.approx(np.prod(members) ** (1 / 6), rel=1e-12)
    agreement = [
        (each(blurred[:100])[1].argmax(1) == images.test_labels[:100]).mean() for each in evaluators.classifiers
    ]
    assert found[f"class_agreement/{evaluators.name}@100"] == pytest.approx(np.mean(agreement))
    # All reconstructions are far nearer to some of themselves than the images are.
    assert found[f"fd_codes/{evaluators.name}@100"] < 0.5 * found[f"fd/{evaluators.name}@100"]
    save_arrays(tmp_path / "reference.safetensors", reference.arrays())
    again = load_references(tmp_path / "reference.safetensors")
    assert measure_pictures(blurred[:100], images.test_labels[:100], again, evaluators, config) == found
    whole = measure_pictures(blurred, images.test_labels, reference, evaluators, config)
    assert whole[f"fd_codes/{evaluators.name}@360"] == pytest.approx(0, abs=1e-9)


def test_by_another_extractor_the_set_tells_the_classes_alone(made, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("eyes.py").write_text(
        "def half(images, device):\n    return images[:, ::2, ::2].reshape(len(images), -1) / 255\n"
    )
    evaluators, config = load_evaluators(made), trial(**{"evaluation.extractor": "eyes.py:half"})
    (half,) = extractors_of(config, evaluators)
    reference = References.of([half], images.test, images.test // 2)
    found = measure_pictures(images.test[:50], images.test_labels[:50], reference, evaluators, config)
    families = set(BUILT_IN) - {"score", *SPATIAL}  # it tells no classes
    names = {family: evaluators.name if family == "class_agreement" else half.name for family in families}
    assert set(found) == {f"{family}/{name}@50" for family, name in names.items()}
    assert found[f"fd_codes/{half.name}@50"] > found[f"fd/{half.name}@50"]


def test_one_classifier_is_no_extractor_any_more():
    with pytest.raises(InputError, match=r"evaluation\.extractor = classifier is no more: set"):
        check_settings(trial(**{"evaluation.extractor": "classifier"}))


@pytest.mark.slow
def test_what_the_package_ships_is_what_its_command_makes(tmp_path):
    """On the machine that made it; another one's trainings have other bits, which is why it is shipped."""
    images = load_images(DataConfig("fashion-mnist"))
    file = stages.shipped(images.digest, ClassifierConfig())
    assert file is not None
    ship(images, ClassifierConfig(), tmp_path / "again.safetensors", nothing)
    again = load_arrays(tmp_path / "again.safetensors")[0]
    for name, array in load_arrays(file)[0].items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
