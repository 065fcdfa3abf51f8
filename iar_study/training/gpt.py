"""Train one GPT on rearranged codes with L_TCE + lambda * L_CCE: resumable, and bit-identical when repeated.

Everything random in step s (dropped classes, dropout) is seeded by (seed, s), and the batch is a function of
(seed, s): a resumed training needs no random state, and all arms of a study see the same noise in the same order.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import torch

from iar_study.codebook import Rearrangement
from iar_study.config import TrainConfig, TrialConfig
from iar_study.data.batches import batch_indices
from iar_study.data.codes import Codes
from iar_study.evaluation.predictions import Judge, evaluate_predictions, prediction_metrics
from iar_study.models.gpt import GPT
from iar_study.models.losses import token_and_cluster_cross_entropy
from iar_study.training.checkpoint import load_checkpoint, save_checkpoint
from iar_study.training.journal import Journal


class Diverged(ArithmeticError):
    """The training loss is no longer finite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the training loss is not finite at step {step}")
        self.step = step


def step_seed(seed: int, step: int) -> int:
    """Return the seed of all random draws of one training step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def initial_model(config: TrialConfig, codes: Codes, rearrangement: Rearrangement) -> GPT:
    """Return the GPT of (seed): its embedding and output rows are permuted with the codes, all else is alike."""
    torch.manual_seed(config.seed)
    model = GPT(config.model, len(rearrangement.permutation), len(codes.class_names), codes.grid)
    model.rearrange_vocabulary(torch.from_numpy(rearrangement.order))
    return model.to(config.compute.device)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of 0-based `step`: linear warm-up, then constant or a cosine to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: GPT, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, as in LlamaGen's recipe."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def train_gpt(
    config: TrialConfig, codes: Codes, rearrangement: Rearrangement, judging: Rearrangement, folder: Path
) -> GPT:
    """Train a trial's model, going on from the checkpoint in `folder` when there is one.

    Parameters
    ----------
    codes : the tokens, in the original order of the codes.
    rearrangement : the order and the clusters that this arm trains with.
    judging : the clusters that `val/*` metrics are measured by, alike for every arm.
    folder : receives `journal.jsonl` and `checkpoint.safetensors`.

    Raises
    ------
    Diverged : the loss is NaN or infinite.
    """
    settings, device = config.train, torch.device(config.compute.device)
    torch.set_num_threads(config.compute.threads)
    torch.use_deterministic_algorithms(True)
    model = initial_model(config, codes, rearrangement)
    optimizer = make_optimizer(model, settings)
    journal = Journal(folder / "journal.jsonl")
    checkpoint = folder / "checkpoint.safetensors"

    train_tokens = rearrangement.tokens(codes.train_tokens)
    held_out = slice(0, config.evaluation.images)
    val_tokens = torch.from_numpy(rearrangement.tokens(codes.test_tokens[held_out])).long().to(device)
    val_labels = torch.from_numpy(codes.test_labels[held_out]).to(device)
    own = torch.from_numpy(rearrangement.boundaries)  # on the CPU, where the loss can look at them at no cost
    judge = Judge(judging, rearrangement, device)
    forward = torch.compile(model) if config.compute.compile else model

    state = load_checkpoint(checkpoint, model, optimizer) or {"step": 0, "sums": [0.0, 0.0], "count": 0}
    model.train()
    started, timed_steps = time.perf_counter(), 0
    for step in range(state["step"], settings.steps):
        torch.manual_seed(step_seed(config.seed, step))
        batch = batch_indices(len(train_tokens), settings.batch_size, step, config.seed)
        tokens = torch.from_numpy(train_tokens[batch]).long().to(device)
        labels = torch.from_numpy(codes.train_labels[batch])
        dropped = torch.rand(len(labels)) < config.model.class_dropout
        labels = torch.where(dropped, len(codes.class_names), labels).to(device)

        with torch.autocast(device.type, torch.bfloat16, enabled=config.compute.precision == "bfloat16"):
            logits = forward(labels, tokens[:, :-1])
        tce, cce = token_and_cluster_cross_entropy(logits, tokens, own)
        loss = tce + config.loss.cluster_weight * cce
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        done = step + 1
        if not math.isfinite(loss.item()):
            raise Diverged(done)
        optimizer.step()

        timed_steps += 1
        state = {
            "step": done,
            "sums": [state["sums"][0] + tce.item(), state["sums"][1] + cce.item()],
            "count": state["count"] + 1,
        }
        metrics: dict[str, float] = {}
        if done % settings.log_every == 0 or done == settings.steps:
            token_nll, cluster_nll = (total / state["count"] for total in state["sums"])
            metrics |= prediction_metrics(judge.sums(logits.detach(), tokens), "train")
            metrics |= {
                "train/loss": token_nll + config.loss.cluster_weight * cluster_nll,
                "train/token_nll": token_nll,
                "train/own_cluster_nll": cluster_nll,
                "train/grad_norm": float(grad_norm),
                "train/lr": learning_rate(settings, step),
                "train/tokens_per_second": timed_steps * tokens.numel() / (time.perf_counter() - started),
            }
            state |= {"sums": [0.0, 0.0], "count": 0}
        if done % config.evaluation.every == 0 or done == settings.steps:
            metrics |= evaluate_predictions(model, val_labels, val_tokens, own, judge)
        if metrics:
            journal.write(done, metrics)
            started, timed_steps = time.perf_counter(), 0
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save_checkpoint(checkpoint, model, optimizer, state)
    return model


def original_order(model: GPT, rearrangement: Rearrangement) -> GPT:
    """Undo the rearrangement of the model's rows in place, so that its tokens index the original codebook."""
    model.rearrange_vocabulary(torch.from_numpy(rearrangement.permutation))
    return model
