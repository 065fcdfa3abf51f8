"""Plans: numbers computed by hand, their proportions, and what is missing here, named with what to do."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iar_study.config import ClusteringConfig, DataConfig, EvaluationConfig, TokenizerConfig, TrainConfig, TrialConfig
from iar_study.data import fashion_mnist
from iar_study.data.llamagen_codes import write_codes
from iar_study.errors import InputError
from iar_study.reporting.needs_text import flops, needs_text
from iar_study.running.needs import Needs, duration, find_needs, hours, short
from iar_study.study.study import Arm, Profile, Study, load_profiles, load_studies

ROOT = Path(__file__).parents[2] / "experiments"
STUDIES, PROFILES = load_studies(ROOT), load_profiles(ROOT)


@pytest.fixture(autouse=True)
def _elsewhere(workspace, monkeypatch):
    """No data, no GPU: nothing of this machine counts."""
    monkeypatch.setenv("IAR_DATA", str(workspace.root / "cache"))
    monkeypatch.setenv("PATH", str(workspace.root))
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", workspace.root / "nowhere")


@pytest.fixture
def planned(workspace):
    def call(study="components", profile="smoke", gpu="H100", gpus=8, utilisation=0.4, **others) -> Needs:
        study = STUDIES[study] if isinstance(study, str) else study
        profile = PROFILES[profile] if isinstance(profile, str) else profile
        return find_needs(study, profile, workspace, gpu=gpu, gpus=gpus, utilisation=utilisation, **others)

    return call


def needs(plan: Needs) -> dict[str, str]:
    """What is not met, with what to do."""
    return {need.what: f"{need.found}; {need.remedy}" for need in plan.needs if not need.met}


def test_numbers_computed_by_hand(planned):
    """Smoke: 16 tokens of 64 codes, 2 layers of width 32, whose feed-forward is int(85.3) -> 96 wide."""
    plan = planned()
    [kind] = plan.kinds
    block = 4 * 32 * 32 + 3 * 32 * 96
    products = 2 * block + 32 * 64
    forward = 2 * 16 * products + 2 * 4 * 32 * 16 * 16
    assert (plan.trials, kind.trials, kind.each.tokens) == (12, 12, 60 * 32 * 16)
    assert kind.parameters == 2 * block + (64 + 64 + 11) * 32 + 5 * 32
    assert kind.each.training_flops == 60 * 32 * 3 * forward
    assert kind.each.evaluation_flops == 3 * 300 * forward  # at steps 20, 40 and 60
    assert kind.each.sampling_flops == 3 * 200 * 2 * (2 * 16 * products + 2 * 4 * 32 * (16 * 17 // 2))
    spent = kind.each.training_flops + kind.each.evaluation_flops + kind.each.sampling_flops
    assert kind.each.gpu_hours == pytest.approx(spent / (989e12 * 0.4) / 3600)
    assert plan.total.wall_hours == pytest.approx(12 * kind.each.gpu_hours / 8)
    assert kind.ddp_state_bytes_per_gpu == 20 * kind.parameters
    assert kind.fsdp_state_bytes_per_gpu == 20 * kind.parameters / 8
    assert plan.disk.checkpoints_bytes == 3 * 16 * kind.parameters
    assert plan.disk.codes_bytes == 1797 * (16 * 4 + 8)
    assert kind.kept_bytes == 3 * 4 * kind.parameters + 3 * 200 * 16 * 2 + 80 * 8 * 8


def test_proportions(planned):
    plan = planned()
    longer = planned(settings={"train.steps": 120}).total
    assert longer.tokens == 2 * plan.total.tokens
    assert longer.training_flops == 2 * plan.total.training_flops
    assert longer.sampling_flops == plan.total.sampling_flops
    assert planned(gpus=4).total.wall_hours == 2 * plan.total.wall_hours
    assert planned(gpus=4).total.gpu_hours == plan.total.gpu_hours
    assert planned(utilisation=0.2).total.gpu_hours == pytest.approx(2 * plan.total.gpu_hours)
    assert planned(gpu="A100").total.gpu_hours == pytest.approx(989 / 312 * plan.total.gpu_hours)
    assert planned(seeds=[3]).total.tokens * 2 == plan.total.tokens
    assert planned(settings={"evaluation.guidance": 1.0}).total.sampling_flops * 2 == plan.total.sampling_flops
    assert (
        planned(settings={"parallel.activation_checkpointing": True}).total.training_flops > plan.total.training_flops
    )


def test_equal_trials_are_counted_once_and_unequal_ones_apart(planned):
    arms = (
        Arm("a", "baseline"),
        Arm("b", "the same: no clusters, whatever their number", {"clustering.n_clusters": 4}),
        Arm("c", "the same, spread otherwise", {"parallel.strategy": "fsdp"}),
        Arm("d", "wider", {"model.width": 64}),
    )
    plan = planned(Study("s", "", "", "a", arms))
    assert plan.trials == 4  # of two seeds
    assert [(kind.arms, kind.trials) for kind in plan.kinds] == [(("a", "b", "c"), 2), (("d",), 2)]
    assert plan.total.tokens == 4 * plan.kinds[0].each.tokens
    assert plan.total.training_flops == 2 * sum(kind.each.training_flops for kind in plan.kinds)
    text = needs_text(plan)
    assert "4 arms x 2 seeds = 4 (equal ones counted once)" in text
    assert "each of a, b, c" in text
    assert planned(Study("s", "", "", "a", arms), arms=["d"]).arms == ("a", "d")  # the baseline is always there


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("study", [name for name, study in STUDIES.items() if study.kind != "near-codes"])
def test_every_study_can_be_planned_at_every_profile(planned, study, profile):
    plan = planned(study, profile)
    assert plan.total.gpu_hours > 0
    assert max(map(len, needs_text(plan).splitlines())) <= 120 + len(str(Path.cwd()))


def test_arms_of_another_codebook_than_that_of_given_codes_are_named(planned):
    assert "codebook" not in needs(planned("codebook-size", "full"))
    assert "codebook" not in needs(planned("components", "paper"))
    plan = planned("codebook-size", "paper")
    assert needs(plan)["codebook"] == (
        "data/vq_ds16_c2i.pt has 16,384 codes; arms ask for 4096, 8192 or 32768; "
        "leave these arms out: --arms baseline iar"
    )
    assert "codebook" not in needs(planned("codebook-size", "paper", arms=["baseline", "iar"]))


def test_the_text_says_what_the_json_says(planned):
    plan = planned(profile="paper")
    text, read = needs_text(plan), json.loads(plan.as_json())
    assert read == json.loads(json.dumps(asdict(plan)))
    [kind] = read["kinds"]
    for work in (kind["each"], read["total"]):
        assert short(work["tokens"]) in text
        assert hours(work["gpu_hours"]) in text
        assert duration(work["wall_hours"]) in text
        for name in ("training", "evaluation", "sampling"):
            assert flops(work[f"{name}_flops"]) in text
    for size in (
        kind["ddp_state_bytes_per_gpu"],
        kind["fsdp_state_bytes_per_gpu"],
        *(read["disk"][f"{part}_bytes"] for part in ("codes", "checkpoints", "kept", "needed", "free")),
    ):
        assert short(size, "B") in text
    for need in read["needs"]:
        assert f"{'ok' if need['met'] else 'NO'}  {need['what']}" in text
        assert need["found"] in text


def test_the_paper_profile_is_llamagens_recipe(planned):
    plan = planned(profile="paper")
    assert short(plan.kinds[0].parameters) == "111 M"
    assert plan.kinds[0].each.tokens == 300 * 5004 * 256 * 256
    assert plan.epochs == pytest.approx(300, rel=1e-3)
    assert plan.data.codes_bytes == 1_281_167 * (10 * 256 * 2 + 8) + 50_000 * (256 * 2 + 8)
    larger = planned(
        profile="paper", settings={"model": "L", "data.name": "codes:data/imagenet384", "data.image_size": "384"}
    )
    assert larger.data.tokens_per_image == 576
    assert short(larger.kinds[0].parameters) == "343 M"


def test_what_is_missing_is_named_with_what_to_do(planned):
    missing = needs(planned(profile="paper"))
    assert "data/imagenet256/train and data/imagenet256/test" in missing["codes"]
    assert "iar-study encode IMAGES --tokenizer data/vq_ds16_c2i.pt" in missing["codes"]
    assert "iar-study pack imagenet256_codes -o data/imagenet256/train" in missing["codes"]
    assert "no file data/vq_ds16_c2i.pt" in missing["tokenizer"]
    assert "8 planned, none here" in missing["GPUs"]
    assert "(assumed, as in ImageNet)" in needs_text(planned(profile="paper"))
    unnamed = needs(planned(profile="paper", settings={"tokenizer.checkpoint": "none"}))
    assert "tokenizer.checkpoint=FILE" in unnamed["tokenizer"]


def pack(folder: Path, images: int, augmentations: int, tokens: int = 16, codebook_size: int = 300) -> None:
    index = {
        "images": images,
        "augmentations": augmentations,
        "tokens": tokens,
        "codebook_size": codebook_size,
        "classes": 5,
    }
    batch = np.zeros((images, augmentations, tokens), np.int64), np.zeros(images, np.int64)
    write_codes(folder, {**index, "source": {}}, lambda start: [batch], step=images)


@pytest.fixture
def encoded() -> Profile:
    config = TrialConfig(
        data=DataConfig("codes:codes"),
        tokenizer=TokenizerConfig(codebook_size=300, patch=4, checkpoint="vq.safetensors"),
        clustering=ClusteringConfig(n_clusters=30),
        train=TrainConfig(steps=10, batch_size=4),
        evaluation=EvaluationConfig(clusters=30),
    )
    return Profile("mine", "", config, (0,))


def test_codes_on_the_disk_are_counted_as_they_are(planned, encoded):
    pack(Path("codes/train"), 40, 2)
    half = planned(profile=encoded)
    assert (half.data.train_images, half.data.test_images, half.data.assumed) == (40, 50_000, True)
    assert "codes/test" in needs(half)["codes"]
    assert "codes/train and" not in needs(half)["codes"]
    pack(Path("codes/test"), 8, 1)
    Path("vq.safetensors").touch()
    plan = planned(profile=encoded)
    assert needs(plan) == {}
    assert (plan.data.tokens_per_image, plan.data.classes, plan.data.image_pixels) == (16, 5, 16)
    assert plan.data.codes_bytes == 40 * (2 * 16 * 2 + 8) + 8 * (16 * 2 + 8)
    assert plan.disk.codes_bytes == 0
    assert plan.epochs == 1
    assert "40 x 2 + 8 images" in needs_text(plan)


def test_codes_that_do_not_fit_are_named(planned, encoded):
    pack(Path("codes/train"), 4, 1)
    pack(Path("codes/test"), 4, 1, codebook_size=64)
    assert "codes/test: 16 tokens an image, 64 codes" in needs(planned(profile=encoded))["codes"]
    other = replace(encoded, config=replace(encoded.config, data=DataConfig("codes:codes", image_size=32)))
    assert "planned: 64 tokens an image" in needs(planned(profile=other))["codes"]
    Path("codes/test/labels.npy").write_bytes(b"")
    assert "labels.npy" in needs(planned(profile=encoded))["codes"]


def test_images_are_looked_for_and_nothing_is_fetched(planned, tmp_path):
    assert "31 MB" in needs(planned(profile="quick"))["data"]
    assert not (tmp_path / "cache").exists()
    settings = {"data.name": "folder:pictures", "data.image_size": 8}
    absent = planned(settings=settings)
    assert absent.data.assumed
    assert "pictures cannot be read" in needs(absent)["data"]
    for split, count in (("train", 3), ("test", 2)):
        for name in "ab":
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (9, 9)).save(folder / f"{i}.png")
    data = planned(settings=settings).data
    assert (data.train_images, data.test_images, data.classes, data.assumed) == (6, 4, 2, False)


def test_gpus_must_be_here_and_share_a_batch_out(planned, workspace):
    tool = workspace.root / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA A100\necho NVIDIA A100\n")
    tool.chmod(0o755)
    cuda = {"compute.device": "cuda", "compute.precision": "bfloat16", "train.batch_size": 32, "train.micro_batch": 8}
    assert needs(planned(gpus=2, settings=cuda)) == {}
    assert needs(planned(gpus=4, settings=cuda)) == {
        "GPUs": "4 planned, 2 x NVIDIA A100 here; run where they are, or plan with another --gpus"
    }
    assert "--gpus 1, 2 or 4, or" in needs(planned(gpus=3, settings=cuda))["batch"]
    assert "--gpus 1, or" in needs(planned(gpus=2, settings={"compute.device": "cuda"}))["batch"]
    assert needs(planned(gpus=3)) == {}  # the profile asks for a CPU


def test_a_model_must_fit_and_the_gpu_have_the_precision(planned):
    large = {"model": "3B"}
    assert "fsdp" in needs(planned(profile="paper", gpu="RTX4090", settings=large))["GPU memory"]
    assert "GPU memory" not in needs(planned(profile="paper", gpu="H100", settings=large))
    shared = {**large, "parallel.strategy": "fsdp"}
    assert "GPU memory" not in needs(planned(profile="paper", gpu="RTX4090", settings=shared))
    assert "more GPUs" in needs(planned(profile="paper", gpu="RTX4090", gpus=1, settings=shared))["GPU memory"]
    assert "compute.precision=float16" in needs(planned(profile="paper", gpu="V100"))["precision"]
    half = {"compute.precision": "float16"}
    assert all("precision" not in needs(planned(profile="paper", gpu=gpu, settings=half)) for gpu in ("V100", "H100"))
    full = {"compute.precision": "float32"}
    assert "compute.precision=bfloat16" in needs(planned(profile="paper", settings=full))["precision"]


def test_a_full_disk_is_named(planned, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert "1 kB free" in needs(planned())["disk"]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"gpu": "H10O"}, "unknown GPU 'H10O'; did you mean 'H100'?"),
        ({"gpus": 0}, "--gpus 0"),
        ({"utilisation": 0.0}, "--utilisation 0"),
        ({"utilisation": 40.0}, "--utilisation 40"),
        ({"settings": {"model": "XLL"}}, "did you mean 'XL'"),
        ({"settings": {"data.name": "digit"}}, "did you mean 'digits'"),
        ({"settings": {"tokenizer.patch": 3}}, "do not divide"),
    ],
)
def test_bad_input(planned, others, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        planned(**others)


def test_numbers_are_short():
    assert [short(n) for n in (0, 7, 999, 1000, 999_499, 999_500, 2.5e15)] == [
        *("0", "7", "999", "1 k", "999 k", "1 M", "2,500 T")
    ]
    assert (short(2_220_000_000, "B"), short(12, "B")) == ("2.22 GB", "12 B")
