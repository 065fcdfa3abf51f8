"""LlamaGen's checkpoints: round trips in every layout, and one clear line for a file that is something else."""

import argparse

import pytest
import torch

from iar_study.config import PRESETS, ModelConfig
from iar_study.errors import InputError
from iar_study.generators.gpt import GPT
from iar_study.generators.llamagen import load_llamagen, save_llamagen

VOCABULARY, CLASSES, GRID = 24, 5, 3


def random_model(config: ModelConfig = PRESETS["tiny"]) -> GPT:
    torch.manual_seed(0)
    model = GPT(config, VOCABULARY, CLASSES, GRID).eval()
    torch.nn.init.normal_(model.output.weight)
    return model


class Stranger:
    """Something that a checkpoint must not bring along."""


@pytest.mark.parametrize("layout", ["ddp", "fsdp", "ema"])
def test_what_is_saved_is_loaded(tmp_path, layout):
    model, path = random_model(), tmp_path / "new" / "model.pt"
    save_llamagen(model, path, layout)
    loaded = load_llamagen(path, grid=GRID)
    assert loaded.config == model.config
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    labels, tokens = torch.tensor([0, CLASSES]), torch.randint(VOCABULARY, (2, GRID**2))
    assert torch.equal(loaded(labels, tokens[:, :-1]), model(labels, tokens[:, :-1]))
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


def test_the_layouts_are_those_that_llamagen_reads(tmp_path):
    model, names = random_model(), {}
    for layout in ("ddp", "fsdp", "ema"):
        save_llamagen(model, tmp_path / layout, layout)
        names[layout] = torch.load(tmp_path / layout, weights_only=True)
    assert list(names["ddp"]) == ["model"]
    assert list(names["ema"]) == ["model", "ema"]
    assert list(names["ddp"]["model"]) == list(names["fsdp"]) == list(names["ema"]["ema"])
    assert {name.replace("layers.1.", "layers.0.") for name in names["fsdp"] if "layers.2" not in name} >= {
        "tok_embeddings.weight",
        "cls_embedding.embedding_table.weight",
        "layers.0.attention.wqkv.weight",
        "layers.0.attention.wo.weight",
        "layers.0.feed_forward.w1.weight",
        "layers.0.feed_forward.w2.weight",
        "layers.0.feed_forward.w3.weight",
        "layers.0.attention_norm.weight",
        "layers.0.ffn_norm.weight",
        "norm.weight",
        "output.weight",
    }
    assert (tmp_path / "ema").stat().st_size < 1.1 * (tmp_path / "ddp").stat().st_size


def test_a_training_checkpoint_may_hold_more_than_weights(tmp_path):
    weights = random_model().state_dict()
    averaged = {name: weight + 1 for name, weight in weights.items()}
    extra = {"optimizer": {"state": {0: torch.ones(2)}, "lr": 1e-4}, "steps": 7, "args": argparse.Namespace(lr=1e-4)}
    torch.save({"model": weights, "ema": averaged, **extra}, tmp_path / "both.pt")
    torch.save({"ema": averaged, **extra}, tmp_path / "average.pt")
    torch.save({"model": {name: weight.bfloat16() for name, weight in weights.items()}}, tmp_path / "half.pt")
    assert torch.equal(load_llamagen(tmp_path / "both.pt").norm.weight, weights["norm.weight"])
    for name, choice in (("both.pt", "ema"), ("average.pt", "model"), ("average.pt", "ema")):
        assert torch.equal(load_llamagen(tmp_path / name, weights=choice).norm.weight, averaged["norm.weight"])
    assert load_llamagen(tmp_path / "half.pt").norm.weight.dtype == torch.float32
    with pytest.raises(InputError, match="no averaged weights"):
        load_llamagen(tmp_path / "half.pt", weights="ema")


@pytest.mark.parametrize("multiple", [32, 256, 40])
def test_sizes_are_read_from_the_weights_and_heads_are_asked_for(tmp_path, multiple):
    model = random_model(ModelConfig(layers=2, heads=4, width=48, ffn_multiple=multiple, dropout=0.1))
    save_llamagen(model, tmp_path / "own.pt")
    with pytest.raises(InputError, match="2 layers of width 48, which is no preset: say how many heads"):
        load_llamagen(tmp_path / "own.pt")
    loaded = load_llamagen(tmp_path / "own.pt", heads=4, grid=GRID)
    labels = torch.tensor([1])
    assert torch.equal(loaded(labels, None), model(labels, None))
    assert (loaded.vocab_size, loaded.cls_embedding.n_classes) == (VOCABULARY, CLASSES)
    with pytest.raises(InputError, match=r"model\.heads = 5"):
        load_llamagen(tmp_path / "own.pt", heads=5)


def without(weights, name):
    return {key: weight for key, weight in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: without(w, "norm.weight"), "missing norm.weight"),
        (lambda w: without(w, "layers.2.feed_forward.w1.weight"), "3 layers of width 64"),
        (lambda w: w | {"layers.0.attention.wo.bias": torch.zeros(64)}, "unknown layers.0.attention.wo.bias"),
        (lambda w: w | {"output.weight": torch.zeros(9, 64)}, r"output.weight \(9, 64\) instead of \(24, 64\)"),
        (lambda w: without(w, "cls_embedding.embedding_table.weight"), "lacks cls_embedding.embedding_table.weight"),
        (
            lambda w: {"encoder.conv_in.weight": torch.zeros(3)},
            "lacks cls_embedding.*, layers.0.*, tok_embeddings.weight and holds encoder.conv_in",
        ),
        (lambda w: {"model": {}}, "holds model and no weights"),
        (lambda w: {"model": w, "more": Stranger()}, "save its weights alone"),
        (lambda w: torch.zeros(3), "Tensor"),
    ],
)
def test_another_checkpoint_is_refused_in_one_line(tmp_path, change, words):
    torch.save(change(random_model().state_dict()), tmp_path / "other.pt")
    with pytest.raises(InputError, match=words) as error:
        load_llamagen(tmp_path / "other.pt")
    assert str(tmp_path / "other.pt") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_in_one_line(tmp_path, share):
    save_llamagen(random_model(), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "part.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"part\.pt") as error:
        load_llamagen(tmp_path / "part.pt")
    assert "\n" not in str(error.value)


def test_a_missing_file_and_an_unknown_layout_are_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.pt"):
        load_llamagen(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="unknown layout 'zip'"):
        save_llamagen(random_model(), tmp_path / "model.pt", "zip")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        save_llamagen(random_model(), tmp_path / "file" / "model.pt")
