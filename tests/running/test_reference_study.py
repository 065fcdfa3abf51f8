"""Images that came encoded, measured against given pictures: from LlamaGen's layout to a verdict on images."""

import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from iar_study.cli import main
from iar_study.config import TokenizerConfig, with_settings
from iar_study.data.picture_sets import open_pictures, write_npz
from iar_study.errors import InputError
from iar_study.evaluation import feature_parts
from iar_study.evaluation.feature_parts import reference_of
from iar_study.evaluation.features import OwnFeatures, extract_all
from iar_study.evaluation.fidelity import measure_fidelity
from iar_study.evidence.results import load_results
from iar_study.pipeline.drawing import kept_tokens, sampled_classes
from iar_study.pipeline.workspace import Workspace, config_of, read_record
from iar_study.running.needs import find_needs
from iar_study.storage import load_arrays, read_json, save_arrays
from iar_study.study.study import load_profile, load_study
from iar_study.tokenizers.given import decoded, load_tokenizer
from iar_study.tokenizers.patch_vq import PatchVQ
from tests import forked
from tests.workspaces import make_workspace

NETWORK = '''
"""Made-up, of Inception's shape: features, class probabilities, and spatial features."""
import numpy as np

def network(images, device):
    rng = np.random.default_rng(0)
    pixels = images.reshape(len(images), -1) / 255
    features = np.tanh(pixels @ rng.normal(size=(pixels.shape[1], 12)))
    logits = features @ rng.normal(size=(12, 5))
    odds = np.exp(logits)
    return features, odds / odds.sum(1, keepdims=True), pixels[:, ::40]
'''
SAMPLES, SIDE = 1200, 6
ARGUMENTS = ["run", "components", "--profile", "smoke", "--seeds", "0", "1", "--arms", "baseline", "iar", "--set"]


def write_codes(folder: Path, name: str, images: int, augmentations: int, rng: np.random.Generator) -> Path:
    """Random codes as LlamaGen lays them out: a file for each image, and one for its class."""
    codes, labels = folder / name / "imagenet8_codes", folder / name / "imagenet8_labels"
    for part in (codes, labels):
        part.mkdir(parents=True)
    for i in range(images):
        np.save(codes / f"{i}.npy", rng.integers(16, size=(1, augmentations, 16)))
        np.save(labels / f"{i}.npy", np.array([i % 10]))
    return codes


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Codes, their tokenizer, a reference of other pictures with moments of its own, and who looks at them."""
    root = make_workspace(tmp_path_factory.mktemp("workspace")).root
    rng = np.random.default_rng(0)
    for split, images, augmentations in (("train", 60, 10), ("test", 20, 1)):
        source = write_codes(root / "extracted", split, images, augmentations, rng)
        sizes = ["--codebook-size", "16", "--classes", "10"]
        assert main(["pack", str(source), "-o", str(root / "codes" / split), *sizes]) == 0
    config = TokenizerConfig(codebook_size=16, code_dim=4, channels=8, patch=2)
    arrays = {name: tensor.numpy() for name, tensor in PatchVQ(config, 3).state_dict().items()}
    about = {"config": vars(config) | {"steps": 20}, "channels": 3}
    save_arrays(root / "tokenizer.safetensors", arrays, about)
    pictures = rng.integers(256, size=(700, SIDE, SIDE, 3), dtype=np.uint8)
    write_npz(root / "reference.npz", [pictures], len(pictures), (SIDE, SIDE, 3))
    (root / "look.py").write_text(NETWORK)
    return root


SETTINGS = [
    *("data.name=codes:codes", "tokenizer.checkpoint=tokenizer.safetensors", "tokenizer.codebook_size=16"),
    *("tokenizer.code_dim=4", "tokenizer.patch=2", "clustering.n_clusters=4", "evaluation.clusters=4"),
    *(
        "train.steps=6",
        "train.warmup_steps=0",
        "train.batch_size=20",
        "train.micro_batch=10",
        "train.kept=1",
        "evaluation.images=20",
    ),
    *("evaluation.extractor=look.py:network", "evaluation.reference=reference.npz", f"evaluation.image_size={SIDE}"),
    *(f"evaluation.samples={SAMPLES}", "evaluation.classes=random"),
]


def command(folder: Path, *arguments: str) -> None:
    feature_parts.LOOKED_AT_ONCE = 300
    sys.exit(main(list(arguments)))


def test_from_llamagens_codes_to_a_verdict_on_images_killed_twice(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    workspace = Workspace(root)
    given = [*ARGUMENTS, *SETTINGS]
    for moment in ("cache/.reference*/*.safetensors", "trials/*/progress/*/features/*.safetensors"):
        process = forked.start(command, root, *given, "--executor", "here")
        while process.is_alive() and not list((root / "runs").glob(moment)):
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
    process = forked.start(command, root, *given, "--executor", "here")
    process.join()
    assert process.exitcode == 0

    results = load_results(workspace, "components")
    fd = results.find("fd")
    assert fd.startswith("fd/network-")
    families = {metric.partition("/")[0] for metric in results.final["metric"] if "@1200" in metric}
    assert families == {"fd", "sfd", "fd_inf", "kd", "score", "score10", "precision", "recall", "density", "coverage"}
    page = (root / "reports" / "components" / "index.md").read_text()
    assert "better images: " in page
    assert "better images: not tested" not in page
    assert "FD (network-" in page

    # The same, found by hand from the kept tokens.
    [trial] = [each for each in read_json(workspace.studies / "components.json")["trials"] if each["arm"] == "iar"][:1]
    record = read_record(workspace.trials / trial["hash"])
    config = config_of(record)
    tokens = kept_tokens(workspace.trainings / record["training"], config, 6)[:SAMPLES]
    network, reference = OwnFeatures("look.py:network", "cpu"), open_pictures(root / "reference.npz")
    of_reference = extract_all(network, reference.batches(50), reference.count)
    pictures = decoded(load_tokenizer(root / "tokenizer.safetensors"), tokens, 50, size=SIDE)
    seen = extract_all(network, pictures, SAMPLES)
    expected = measure_fidelity(reference_of(of_reference, "r"), *seen, intervals=False)
    found = read_json(workspace.trials / trial["hash"] / "result.json")["metrics"]
    for family, estimate in expected.items():
        assert found[fd.replace("fd/", f"{family}/")] == pytest.approx(estimate.value, rel=1e-9, abs=1e-9), family
    classes = sampled_classes(config, 10)
    assert len(set(np.bincount(classes))) > 1, "classes are drawn, not in turn"
    assert load_arrays(workspace.trials / trial["hash"] / "samples.safetensors")[0]["samples"].shape[:2] == (10, 8)

    # Other counts, on one process and on two: the parts are shared out, and the same to 1e-9.
    copy = make_workspace(root / "copy")
    shutil.copytree(root / "runs", copy.root / "runs")
    for name in ("codes", "tokenizer.safetensors", "reference.npz", "look.py"):
        (copy.root / name).symlink_to(root / name)
    measure = ["measure", "components", "--samples", "1250", "--executor", "here"]
    assert main(measure) == 0
    monkeypatch.chdir(copy.root)
    assert forked.exit_code(forked.start_two(command, copy.root, *measure)) == 0
    one, two = (load_results(each, "components") for each in (workspace, copy))
    later = one.final["metric"].isin(one.later)
    assert {metric.rpartition("@")[2] for metric in one.later} == {"1250"}
    assert one.final[["arm", "seed", "metric"]].equals(two.final[["arm", "seed", "metric"]])
    np.testing.assert_allclose(two.final.value[later], one.final.value[later], rtol=1e-9, atol=1e-9)


def test_what_has_nothing_to_be_measured_against_is_refused(root, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workspace = make_workspace(tmp_path)
    for name in ("codes", "tokenizer.safetensors", "reference.npz", "look.py"):
        (workspace.root / name).symlink_to(root / name)
    monkeypatch.chdir(workspace.root)
    left_out = ("evaluation.extractor", "evaluation.reference", "evaluation.image_size", "evaluation.samples")
    settings = [each for each in SETTINGS if not each.startswith(left_out)]
    assert main(["run", "components", "--profile", "smoke", "--seeds", "0", "--arms", "iar", "--set", *settings]) == 0
    for given in (["--evaluators", "look.py:network"], ["--samples", "100"]):
        assert main(["measure", "components", *given]) == 2
        assert "codes:codes has no images to measure samples against; give --reference R" in capsys.readouterr().err
    given = ["--reference", "reference.npz", "--image-size", str(SIDE), "--evaluators", "look.py:network"]
    assert main(["measure", "components", *given, "--executor", "here"]) == 0
    assert "fd/network" in " ".join(load_results(workspace, "components").later)
    other = np.random.default_rng(1).integers(256, size=(30, SIDE, SIDE, 3), dtype=np.uint8)
    write_npz(workspace.root / "other.npz", [other], 30, (SIDE, SIDE, 3))
    assert main(["measure", "components", "--reference", "other.npz", *given[2:]]) == 2
    assert "was measured against another reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation.image_size": 8}, r"reference.npz has images of 6 x 6 pixels, the samples are of 8 x 8"),
        ({"evaluation.reference": "nowhere.npz"}, "nowhere.npz"),
        ({"evaluation.extractor": "set"}, "evaluators are trained on images, and codes:PATH has none"),
        (
            {"data.name": "digits", "tokenizer.checkpoint": "none", "evaluation.image_size": "none"},
            "evaluation.reference is for codes:PATH",
        ),
        ({"evaluation.reference": "cut.npz"}, "cut.npz"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(changes, message, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    (root / "cut.npz").write_bytes((root / "reference.npz").read_bytes()[:5000])
    settings = dict(each.split("=", 1) for each in SETTINGS) | {key: str(value) for key, value in changes.items()}
    given = [f"{key}={value}" for key, value in settings.items()]
    assert main([*ARGUMENTS, *given, "--executor", "here"]) == 2
    told = capsys.readouterr().err
    assert message.replace("\\", "") in told
    assert "Traceback" not in told


def test_a_plan_lists_what_is_missing_to_measure(root, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    workspace = Workspace(root)
    study = load_study(workspace.experiments, "components")

    def needs(profile: str, **settings: str) -> dict[str, bool]:
        found = find_needs(
            study,
            load_profile(workspace.experiments, profile),
            workspace,
            settings=settings,
            gpu="H100",
            gpus=8,
            utilisation=0.4,
        )
        return {need.what: need.met for need in found.needs}

    for profile in ("paper", "paper-384"):
        missing = needs(profile)
        assert not missing["reference"]
        assert not missing["Inception's weights"]
        assert "torch-fidelity" in missing
    assert needs("paper", **{"evaluation.reference": "none"})["reference"]
    here = {
        "evaluation.reference": str(root / "reference.npz"),
        "evaluation.extractor": f"inception:{root / 'look.py'}",
    }
    assert needs("paper", **here)["reference"]
    assert needs("paper", **here)["Inception's weights"]
    assert "reference" not in needs("quick")


def test_the_profile_of_the_paper_is_the_authors_experiment(root):
    """Point by point, as `PAPER.md` and LlamaGen's recipe have it."""
    base = load_profile(root / "experiments", "paper").config
    assert base.train.ema == 0  # the weights themselves are sampled from
    assert (base.train.lr, base.train.decay, base.train.warmup_steps) == (1e-4, "constant", 0)
    assert (base.train.beta1, base.train.beta2, base.train.weight_decay, base.train.clip) == (0.9, 0.95, 0.05, 1.0)
    assert base.train.steps == 300 * (1_281_167 // 256)
    assert (base.evaluation.samples, base.evaluation.guidance, base.evaluation.classes) == (50_000, 2.0, "random")
    assert (base.model.dropout, base.model.class_dropout) == (0.1, 0.1)
    large = load_profile(root / "experiments", "paper-384").config
    assert (large.data.image_size, large.evaluation.image_size, large.evaluation.guidance) == (384, 256, 2.25)
    assert large.train == base.train
    with pytest.raises(InputError):
        with_settings(base, {"evaluation.classes": "balanced"})
