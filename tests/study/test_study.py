"""The registry: every file gives a study whose arms fit every profile; mistakes are named."""

from pathlib import Path

import pytest

from iar_study.codebook import EQUAL_SIZES
from iar_study.config import TrialConfig, flatten
from iar_study.errors import InputError
from iar_study.pipeline.workspace import Workspace
from iar_study.study.study import (
    Arm,
    Study,
    arm_config,
    load_profile,
    load_profiles,
    load_studies,
    load_study,
    trial_configs,
)
from iar_study.training.objective import check_loss

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDIES, PROFILES = load_studies(EXPERIMENTS), load_profiles(EXPERIMENTS)


ABOUT_CLUSTERS = ["components", "cluster-count", "balance", "loss-weight", "ordering", "loss-variants"]
"""The paper's ablations of clusters and loss; a study of someone's own may vary anything."""


def test_the_registry_holds_the_ablations_of_the_paper():
    assert {*ABOUT_CLUSTERS, "codebook-size"} <= set(STUDIES)
    assert {"smoke", "quick", "full"} <= set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda s: s.name)
def test_every_arm_fits_every_profile(study, profile):
    for arm in study.arms:
        config = arm_config(study, arm, profile.config, seed=3)
        assert config.seed == 3
        size, n_clusters = config.tokenizer.codebook_size, config.clustering.n_clusters
        assert n_clusters <= size
        if config.clustering.strategy in EQUAL_SIZES:
            assert size % n_clusters == 0
        assert size % config.evaluation.clusters == 0
        check_loss(config.loss, 1 if config.clustering.strategy == "none" else n_clusters, size)
        # Codes that come with their tokenizer have its codebook: `stages.check` refuses an arm of another size.
        given = profile.config.tokenizer.checkpoint is not None
        assert not given or size == profile.config.tokenizer.codebook_size or study.name == "codebook-size"


@pytest.mark.parametrize("name", ABOUT_CLUSTERS)
def test_arms_differ_in_what_the_study_varies_alone(name):
    for arm in STUDIES[name].arms:
        assert all(key.startswith(("clustering.", "loss.")) for key in (*arm.settings, *arm.scale)), arm


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.py")), ids=lambda p: p.name)
def test_a_study_is_a_short_file(path):
    if path.name not in ("profiles.py", "claims.py"):
        assert len(path.read_text().splitlines()) <= 30


def test_a_new_study_needs_no_other_file(workspace):
    (workspace.experiments / "mine.py").write_text(
        "from iar_study.study import Arm, Study\n"
        "study = Study('mine', 'Why?', 'Because.', 'a', (Arm('a', 'first'), Arm('b', 'second', {'train.lr': 1e-3})))\n"
    )
    study = load_study(workspace.experiments, "mine")
    assert arm_config(study, study.arm("b"), TrialConfig(), 0).train.lr == 1e-3


def test_an_arm_scales_numbers_of_the_profile():
    arms = (
        Arm("a", "all"),
        Arm("b", "half", scale={"train.steps": 0.5}),
        Arm("c", "none", scale={"train.steps": 1e-9, "train.lr": 0.5}),
    )
    study = Study("mine", "", "", "a", arms, seeded=("seed", "tokenizer.seed"))
    configs = {arm.name: arm_config(study, arm, TrialConfig(), 7) for arm in arms}
    assert {name: config.train.steps for name, config in configs.items()} == {"a": 1000, "b": 500, "c": 1}
    assert configs["c"].train.lr == TrialConfig().train.lr / 2
    assert all((config.seed, config.tokenizer.seed, config.clustering.seed) == (7, 7, 0) for config in configs.values())


def test_the_arms_of_noise_change_their_own_source_of_it_alone():
    base = load_profile(EXPERIMENTS, "full").config
    study = STUDIES["noise"]
    own = {arm.name: flatten(arm_config(study, arm, base, seed=3)) for arm in study.arms}
    changed = {
        name: {key: own[name][key] for key in own[name] if own[name][key] != own[beside][key]}
        for name, beside in ((arm.name, study.beside(arm)) for arm in study.arms)
    }
    assert changed == {
        "baseline": {},
        "sampling": {"evaluation.noise": 1},
        "training": {"train.noise": 1},
        "tokenizer": {"tokenizer.seed": 4},
        "evaluator": {"classifier.seed": 4},
        "iar": {},
        "clustering": {"clustering.seed": 4},
    }


def test_an_arm_takes_a_share_of_another_number():
    arm = Arm("a", "", {"tokenizer.codebook_size": 64}, {"clustering.n_clusters": (0.25, "tokenizer.codebook_size")})
    config = arm_config(Study("mine", "", "", "a", (arm,)), arm, TrialConfig(), 0)
    assert config.clustering.n_clusters == TrialConfig().tokenizer.codebook_size // 4  # of the profile's


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_clusters_are_counted_from_one_to_as_many_as_codes(profile):
    study, size = STUDIES["cluster-count"], profile.config.tokenizer.codebook_size
    configs = {arm.name: arm_config(study, arm, profile.config, 0) for arm in study.arms}
    counts = {name: config.clustering.n_clusters for name, config in configs.items()}
    assert (counts["n=1"], counts["n=N/4"], counts["n=N"]) == (1, size // 4, size)


@pytest.mark.parametrize("scale", [0.5, (0.5, "train.steps")])
@pytest.mark.parametrize("key", ["train.decay", "compute.compile", "train.step"])
def test_what_is_no_number_is_not_scaled(key, scale):
    arm = Arm("a", "", scale={key: scale})
    with pytest.raises(InputError, match="which is no number; "):
        arm_config(Study("mine", "", "", "a", (arm,)), arm, TrialConfig(), 0)


def test_nor_is_a_share_taken_of_what_is_none():
    arm = Arm("a", "", scale={"train.steps": (0.5, "tokenizer.codebook")})
    with pytest.raises(InputError, match=r"which is no number; did you mean 'tokenizer\.codebook_size'"):
        arm_config(Study("mine", "", "", "a", (arm,)), arm, TrialConfig(), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing = 1", "defines no `study"),
        ("import nothing_like_it", "does not run: ModuleNotFoundError"),
        ("from iar_study.study import Study; study = Study('x', '', '', 'a', ())", "has no arm 'a'"),
    ],
)
def test_a_broken_file_is_named(workspace, text, message):
    (workspace.experiments / "broken.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load_studies(workspace.experiments)


def test_unknown_names_lead_to_the_nearest():
    with pytest.raises(InputError, match="did you mean 'components'"):
        load_study(EXPERIMENTS, "component")
    with pytest.raises(InputError, match="did you mean 'quick'"):
        load_profile(EXPERIMENTS, "quik")
    with pytest.raises(InputError, match="did you mean 'random'"):
        STUDIES["components"].arm("randm")


def test_an_arm_named_twice_is_refused():
    with pytest.raises(InputError, match="twice"):
        Study("x", "", "", "a", (Arm("a", ""), Arm("a", "")))


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda s: s.name)
def test_arms_differ_from_what_they_are_compared_with_in_what_the_study_varies_alone(study):
    """Beside another baseline an arm stands because both have the same of the study's factor."""
    base = load_profile(EXPERIMENTS, "quick").config
    for arm in study.arms:
        beside = study.arm(study.beside(arm))
        if beside.name != study.baseline:
            own, other = (flatten(arm_config(study, each, base, seed=0)) for each in (arm, beside))
            differ = {key for key in own if own[key] != other[key]}
            assert study.factor not in differ
            assert differ <= {"clustering.strategy", "loss.cluster_weight", *arm.seeded}


@pytest.mark.parametrize("study", [s for s in STUDIES.values() if s.factor], ids=lambda s: s.name)
def test_a_series_has_each_value_of_the_factor_once(study):
    base = load_profile(EXPERIMENTS, "quick").config
    places = [
        (arm.series, flatten(arm_config(study, arm, base, seed=0))[study.factor]) for arm in study.arms if arm.series
    ]
    assert len(set(places)) == len(places) >= 3


def test_what_is_compared_with_an_arm_is_run_with_it():
    study = STUDIES["model-scale"]
    base = load_profile(EXPERIMENTS, "quick").config
    found = [(arm.name, seed) for arm, seed, _ in trial_configs(study, base, ["iar-half"], [4, 2])]
    assert found == [(name, seed) for seed in (4, 2) for name in ("baseline-half", "baseline", "iar-half")]


def test_an_arm_is_compared_with_a_baseline_alone():
    arms = (Arm("a", ""), Arm("b", "", beside="a"), Arm("c", "", beside="b"))
    with pytest.raises(InputError, match="arm 'c' is compared with 'b', which is no baseline: it is compared with 'a'"):
        Study("s", "?", ".", "a", arms)
    with pytest.raises(InputError, match="no arm 'z'"):
        Study("s", "?", ".", "a", (Arm("a", ""), Arm("b", "", beside="z")))


def test_a_workspace_is_found_from_below(workspace):
    below = workspace.root / "a" / "b"
    below.mkdir(parents=True)
    assert Workspace.find(below).root == workspace.root.resolve()


def test_outside_a_workspace_the_error_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="change into a clone"):
        Workspace.find(tmp_path)
