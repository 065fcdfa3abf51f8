"""Settings before anything starts: what cannot run is refused, and what would change nothing."""

from pathlib import Path

import pytest

from iar_study.config import TrialConfig, with_settings
from iar_study.errors import InputError
from iar_study.study.checks import asked, check_effects, check_executor, check_settings
from iar_study.study.study import load_profiles, load_studies

ROOT = Path(__file__).parents[2] / "experiments"
STUDIES, PROFILES = load_studies(ROOT), load_profiles(ROOT)
CODES = {"data.name": "codes:here", "tokenizer.checkpoint": "vq.pt"}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_study_fits_every_profile_that_has_its_data(study, profile):
    if study.kind == "near-codes" and profile.name.startswith("paper"):
        with pytest.raises(InputError, match="holds no images"):
            asked(study, profile, None, None, None)
    else:
        base, configs = asked(study, profile, None, None, None)
        assert (base, len(configs)) == (profile.config, len(study.arms) * len(study.seeds(profile)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model.heads": 3}, r"model\.width = 32 does not fit model\.heads = 3"),
        ({"model.width": 30}, r"model\.width = 30 does not fit model\.heads = 2"),
        ({"tokenizer.patch": 3}, "do not divide into patches of 3"),
        ({"tokenizer.patch": 8}, "a single patch of 8"),
        ({"data.image_size": 16}, "digits is 8x8"),
        ({"data.name": "digit"}, "did you mean 'digits'"),
        ({"tokenizer.checkpoint": "vq.py:VQ"}, "there is no file .*vq.py"),
        ({"evaluation.clusters": 7}, r"evaluation\.clusters = 7 does not divide the 64 codes"),
        ({"clustering.n_clusters": 7}, r"clustering\.n_clusters = 7 does not divide"),
        ({"clustering.strategy": "plain", "clustering.n_clusters": 65}, "65 exceeds the 64 codes"),
        ({"loss.coarse_weight": 1, "loss.coarse_clusters": 3}, "does not divide the number of clusters"),
        ({"train.micro_batch": 5}, "does not divide train"),
        ({"evaluation.samples": 3}, r"evaluation\.samples = 3"),
        ({"classifier.batch_size": 1}, r"classifier\.batch_size = 1"),
        ({"clustering.strategy": "ballanced"}, "unknown clustering 'ballanced'; did you mean 'balanced'"),
        ({"clustering.within": "chian"}, "did you mean 'chain'"),
        ({"loss.name": "clustr"}, "did you mean 'cluster'"),
        ({"evaluation.metrics": "fd"}, "unknown metric 'fd'"),
        ({"evaluation.extractor": "inceptoin"}, "did you mean 'inception'"),
        ({"clustering.seed": 2**32}, r"clustering\.seed = 4294967296"),
        ({"tokenizer.seed": 2**64}, r"tokenizer\.seed"),
    ],
)
def test_what_no_run_could_do_is_refused_without_data(settings, message):
    base = with_settings(PROFILES["smoke"].config, {"clustering.strategy": "balanced"})
    with pytest.raises(InputError, match=message) as error:
        check_settings(with_settings(base, settings))
    assert "\n" not in str(error.value)


def test_near_codes_need_pictures_and_two_of_them():
    for settings, message in ((CODES, "holds no images"), ({"evaluation.images": 1}, "too few")):
        config = with_settings(PROFILES["smoke"].config, settings)
        check_settings(config, "training")
        with pytest.raises(InputError, match=message):
            check_settings(config, "near-codes")


def test_processes_must_share_a_batch_out():
    check_settings(TrialConfig(), processes=1)
    with pytest.raises(InputError, match="3 processes cannot share"):
        check_settings(TrialConfig(), processes=3)


@pytest.mark.parametrize(
    ("name", "address", "message"),
    [("proceses", None, "did you mean 'processes'"), ("here", "auto", "an address is for executor ray")],
)
def test_an_executor_that_is_none_is_refused(name, address, message):
    with pytest.raises(InputError, match=message):
        check_executor(name, address)


@pytest.mark.parametrize(
    ("study", "settings", "reason"),
    [
        ("components", {"seed": "5"}, "use --seeds"),
        ("components", {"seed": "0"}, "use --seeds"),
        ("code-distance", {"tokenizer.seed": "5"}, "use --seeds"),
        ("code-distance", {"train.lr": "1"}, "trains no GPT"),
        ("code-distance", {"model": "B"}, "trains no GPT"),
        ("code-distance", {"evaluation.guidance": "1"}, "draws no samples"),
        ("code-distance", {"clustering.strategy": "plain"}, "every arm that reads it sets it itself"),
        ("guidance", {"evaluation.guidance": "3"}, "every arm that reads it sets it itself"),
        ("cluster-count", {"clustering.n_clusters": "4"}, "every arm that reads it sets it itself"),
        ("components", {"loss.first_weight": "1"}, "set loss.schedule, too"),
        ("components", {"loss.smoothing_over": "cluster"}, "set loss.smoothing, too"),
        ("components", {"loss.coarse_clusters": "2"}, "set loss.coarse_weight, too"),
        ("components", {"parallel.strategy": "fsdp"}, "torchrun"),
        ("components", {**CODES, "classifier.steps": "50"}, "without images"),
        ("components", {**CODES, "tokenizer.steps": "50"}, "the tokenizer is given"),
        ("components", {**CODES, "evaluation.extractor": "inception"}, "without images"),
        ("components", {"model.layers": "3", "model": "B"}, "another of the settings sets it"),
    ],
)
def test_a_setting_that_changes_nothing_is_refused_with_what_to_do(study, settings, reason):
    with pytest.raises(InputError, match="changes nothing in study") as error:
        check_effects([STUDIES[study]], PROFILES["smoke"], None, settings)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arm", "key"), [("baseline", "clustering.n_clusters"), ("baseline", "loss.cluster_weight"), ("blocks", "seed")]
)
def test_of_the_arms_that_are_asked_for_one_must_read_it(arm, key):
    study, key = STUDIES["components"], "clustering.seed" if key == "seed" else key
    check_effects([study], PROFILES["smoke"], None, {key: "2"})
    with pytest.raises(InputError, match="changes nothing"):
        check_effects([study], PROFILES["smoke"], [arm], {key: "2"})


@pytest.mark.parametrize(
    ("study", "settings"),
    [
        ("components", {"train.lr": "1", "model.heads": "4", "data.image_size": "8", "compute.compile": "true"}),
        ("components", {"loss.schedule": "linear", "loss.first_weight": "1"}),
        ("components", {"loss.smoothing": "0.1", "loss.smoothing_over": "cluster"}),
        ("components", {"train.steps": "60", "loss.first_weight": "0"}),  # as in the profile
        ("components", {"model": "B", "model.layers": "3"}),
        ("components", {**CODES, "tokenizer.patch": "4", "data.image_size": "16"}),
        ("loss-variants", {"loss.first_weight": "0.5", "loss.coarse_clusters": "2"}),  # of some arms
        ("guidance", {"evaluation.samples": "100", "train.kept": "2", "evaluation.sampled_times": "1"}),
        ("code-distance", {"clustering.n_clusters": "4", "evaluation.images": "20", "tokenizer.steps": "20"}),
        ("cluster-count", {"tokenizer.codebook_size": "128"}),
        ("learning-rate", {"train.lr": "1e-3"}),
    ],
)
def test_a_setting_that_some_trial_reads_is_taken(study, settings):
    check_effects([STUDIES[study]], PROFILES["smoke"], None, settings)


def test_several_processes_read_how_they_share():
    check_effects([STUDIES["components"]], PROFILES["smoke"], None, {"parallel.strategy": "fsdp"}, processes=2)


def test_of_several_studies_one_must_read_it():
    studies = [STUDIES["code-distance"], STUDIES["components"]]
    check_effects(studies, PROFILES["smoke"], None, {"train.lr": "1"})
    with pytest.raises(InputError, match="changes nothing in any study: use --seeds"):
        check_effects(studies, PROFILES["smoke"], None, {"seed": "1"})
