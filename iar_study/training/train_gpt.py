"""Train one GPT on rearranged codes with the loss of IAR or a variant: resumable, and bit-identical when repeated.

Everything random in step s (augmentation, dropped classes, dropout) is seeded by (seed, s), and the batch is a function
of (seed, s): a resumed training needs no random state, all arms of a study see the same noise in the same order, and
any number of processes does the same, to the rounding of their sums.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from iar_study.codebook import Rearrangement
from iar_study.config import TrainConfig, TrialConfig, identity
from iar_study.data.batches import TokenBatches
from iar_study.data.codes import Codes
from iar_study.evaluation.predictions import Judge, by_position, evaluate_predictions, prediction_metrics
from iar_study.generators.gpt import GPT, make_generator
from iar_study.storage import Kept, save_arrays
from iar_study.training.checkpoint import Checkpoints, CheckpointTensors
from iar_study.training.journal import Journal
from iar_study.training.objective import Objective, cluster_weight
from iar_study.training.parallel import first_of, gathered, launch, local, prepare_blocks, spread_like, total
from iar_study.training.progress import Diverged, Losses, Pace
from iar_study.training.signals import StopRequest

Measure = Callable[[GPT, int], Mapping[str, float]]
"""(model in the original order of the codes, step) -> metrics; every process is asked, the first one's count."""

READERS = 2
"""Processes that read batches ahead for a GPT on a GPU."""


PROGRESS = "progress"
"""Folder, in the trial's, of what an evaluation or a measurement that goes on has so far; see `storage.Kept`."""

EVALUATED_AT_ONCE = 250
"""Images that are evaluated together; fewer where a part of a batch is smaller."""


def step_seed(seed: int, step: int, *part: int) -> int:
    """Return the seed of the random draws of one training step, or of one part of its batch."""
    return int(np.random.SeedSequence([seed, step, *part]).generate_state(1, np.uint64)[0] >> 1)


def noise_seed(seed: int, draw: int) -> int:
    """Return the seed of the `draw`-th draw of a seed's noise, of which the seed itself is the first."""
    return step_seed(seed, draw, 1, 1) if draw else seed


def initial_model(config: TrialConfig, codes: Codes, rearrangement: Rearrangement) -> GPT:
    """Return the GPT of (seed): its embedding and output rows are permuted with the codes, all else is alike."""
    torch.manual_seed(config.seed)
    model = make_generator(config.model, len(rearrangement.permutation), len(codes.class_names), codes.grid)
    model.rearrange_vocabulary(torch.from_numpy(rearrangement.order))
    return model


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of 0-based `step`: linear warm-up, then constant or a cosine to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: GPT, config: TrainConfig, fused: bool = True) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, as in LlamaGen's recipe; `fused` is faster, the same to rounding."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=fused)


def sampled_steps(config: TrialConfig) -> set[int]:
    """Return the steps after which samples are drawn: the ends of equal parts of the training."""
    times = config.evaluation.sampled_times
    return {max(config.train.steps * k // times, 1) for k in range(1, times + 1)}


class Training:
    """A GPT in training on the processes of `fabric`: weights, moments, and the moving average of the weights.

    Attributes
    ----------
    model : the GPT; under FSDP its weights are shared out over the processes.
    share : the images of a batch that this process trains on.
    average : what is evaluated, a tensor for each weight; the weights themselves without `train.ema`.
    """

    def __init__(self, fabric: Fabric, config: TrialConfig, codes: Codes, rearrangement: Rearrangement) -> None:
        self.fabric, self.config = fabric, config
        self.model = initial_model(config, codes, rearrangement)
        prepare_blocks(self.model, config)
        objective = Objective(self.model, config.loss, rearrangement, codes.codebook.vectors, fabric.device)
        self.objective = fabric.setup_module(objective)
        # The fused step would unscale float16's gradients itself, after they were to be clipped.
        self.optimizer = make_optimizer(self.model, config.train, fused=config.compute.precision != "float16")
        self.stepper: Any = fabric.setup_optimizers(self.optimizer)
        self.weights = list(self.model.parameters())
        self.average = [p.detach().clone() if config.train.ema else p.detach() for p in self.weights]
        self.size = config.train.micro_batch or config.train.batch_size
        self.parts = config.train.batch_size // self.size // fabric.world_size  # of a batch, for this process
        self.first_part = fabric.global_rank * self.parts
        self.share = slice(self.first_part * self.size, (self.first_part + self.parts) * self.size)
        self.objective.train()

    def step(
        self, step: int, labels: Tensor, tokens: Tensor, judge: Judge | None
    ) -> tuple[dict[str, Tensor], Tensor | None, Tensor]:
        """Take 0-based `step` on this process's labels (B,) and tokens (B, T).

        Returns the terms of the loss by name, the judge's sums, both of this process, and the gradient's norm before
        clipping.
        """
        config, several = self.config, self.fabric.world_size > 1
        seed = noise_seed(config.seed, config.train.noise)
        noise = torch.Generator().manual_seed(step_seed(seed, step))
        dropped = torch.rand(config.train.batch_size, generator=noise)[self.share] < config.model.class_dropout
        labels = torch.where(dropped, self.model.cls_embedding.n_classes, labels)
        weight = cluster_weight(config, step)
        told, sums = [], []
        for part, (some_labels, some_tokens) in enumerate(
            zip(labels.split(self.size), tokens.split(self.size), strict=True), start=1
        ):
            # 1 stands for the augmentations, see `TokenBatches`.
            self._seed(step_seed(seed, step, 1 + self.first_part + part))
            with self.fabric.no_backward_sync(self.objective, enabled=several and part < self.parts):
                loss, of_part, judged = self.objective(
                    some_labels.to(self.fabric.device),
                    some_tokens.to(self.fabric.device, non_blocking=True),
                    judge,
                    weight,
                )
                self.fabric.backward(loss / self.parts)
            told.append(of_part)
            sums.append(judged)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.train, step)
        norm = self.fabric.clip_gradients(
            self.objective, self.stepper, max_norm=config.train.clip, error_if_nonfinite=False
        )
        assert norm is not None  # Fabric clips by norm
        self.stepper.step()
        self.optimizer.zero_grad()
        self._update_average(step)
        terms = {name: torch.stack([of_part[name] for of_part in told]).mean() for name in told[0]}
        return terms, torch.stack(sums).sum(0) if judge else None, norm

    def _seed(self, seed: int) -> None:
        """Seed what this device draws from; `torch.manual_seed` looks at all kinds of devices, for 0.1 ms a step."""
        if self.fabric.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        torch.default_generator.manual_seed(seed)

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        if self.config.train.ema:
            # Early on the average is short, so that the first weights are soon forgotten.
            decay = min(self.config.train.ema, (2 + step) / (11 + step))
            torch._foreach_lerp_([local(a) for a in self.average], [local(w) for w in self.weights], 1 - decay)

    @torch.no_grad()
    def evaluated_model(self) -> GPT:
        """Return a GPT of its own, whole in every process, with the averaged weights; in evaluation mode."""
        model = self.model
        sizes = model.vocab_size, model.cls_embedding.n_classes, model.grid
        whole = make_generator(self.config.model, *sizes).to(self.fabric.device)
        for parameter, average in zip(whole.parameters(), self.average, strict=True):
            parameter.copy_(gathered(average))
        for buffer, trained in zip(whole.buffers(), model.buffers(), strict=True):
            buffer.copy_(trained)
        return whole.eval()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that a checkpoint needs, by name, whole and on the CPU; in the first process alone."""
        found = {}
        for (name, weight), average in zip(self.model.named_parameters(), self.average, strict=True):
            of_weight = {"model": weight, "ema": average} if self.config.train.ema else {"model": weight}
            of_weight |= {f"optimizer.{key}": value for key, value in self.optimizer.state[weight].items()}
            for key, tensor in of_weight.items():
                whole = gathered(tensor)  # all processes take part
                if self.fabric.is_global_zero:
                    found[f"{key}.{name}"] = whole.detach().cpu().contiguous()
        return found

    @torch.no_grad()
    def restore(self, tensors: CheckpointTensors) -> None:
        """Put the tensors of a checkpoint in their places, shared out as the weights are."""
        moments = {name.split(".")[1] for name in tensors.names if name.startswith("optimizer.")}
        for (name, weight), average in zip(self.model.named_parameters(), self.average, strict=True):
            local(weight).copy_(local(spread_like(tensors[f"model.{name}"], weight)))
            if self.config.train.ema:
                local(average).copy_(local(spread_like(tensors[f"ema.{name}"], weight)))
            for moment in moments:
                value = tensors[f"optimizer.{moment}.{name}"]
                like_weight = value.shape == weight.shape  # all but the count of steps
                self.optimizer.state[weight][moment] = (
                    spread_like(value, weight) if like_weight else value.to(weight.device)
                )


def train_gpt(
    config: TrialConfig,
    codes: Codes,
    rearrangement: Rearrangement,
    judging: Rearrangement,
    folder: Path,
    measure: Measure | None = None,
    fabric: Fabric | None = None,
) -> GPT:
    """Train a trial's model, going on from the newest checkpoint in `folder`, and return it in evaluation mode.

    With `train.ema` the model that is evaluated, measured and returned has the moving average of the weights.

    Parameters
    ----------
    codes : the tokens, in the original order of the codes.
    rearrangement : the order and the clusters that this arm trains with.
    judging : the clusters that `val/*` metrics are measured by, alike for every arm.
    folder : receives `journal.jsonl`, `checkpoints/` and, at the end, `predictions.safetensors`: the `val/*` metrics
        by position in the image.
    measure : is asked for the metrics of samples, `evaluation.sampled_times` times.

    Raises
    ------
    Diverged : the loss is NaN or infinite.
    InputError : a checkpoint of other settings, a disk that is full, processes that cannot share the batches out.
    KeyboardInterrupt, SystemExit : at SIGINT and SIGTERM, once a checkpoint is written.
    """
    settings = config.train
    fabric = fabric or launch(config)
    torch.set_num_threads(config.compute.threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads what it has not written; to fill it with NaN takes 7 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    training = Training(fabric, config, codes, rearrangement)
    precision = fabric.strategy.precision
    journal = Journal(folder / "journal.jsonl") if fabric.is_global_zero else None
    checkpoints = Checkpoints(folder / "checkpoints", identity(config))
    first, losses = 0, Losses(fabric)
    if found := first_of(fabric, checkpoints.newest):
        path, state = found
        training.restore(CheckpointTensors(path))
        precision.load_state_dict(state["precision"])
        first, losses = state["step"], Losses(fabric, state["sums"], state["count"])

    on_gpu = fabric.device.type == "cuda"
    seed = noise_seed(config.seed, settings.noise)
    batches = TokenBatches(codes, rearrangement, settings.batch_size, seed, training.share).from_step(
        first, settings.steps, workers=READERS if on_gpu else 0, pin=on_gpu
    )
    judge = Judge(judging, rearrangement, codes.codebook.vectors, fabric.device)
    evaluate = _evaluation(fabric, config, codes, rearrangement, judge)
    to_sample = sampled_steps(config) if measure is not None else set()
    pace = Pace(first, settings.steps, fabric.device)
    with StopRequest() as stop:
        for step, (tokens, labels) in enumerate(pace.batches(batches), start=first):
            done = step + 1
            last = done == settings.steps
            logging = done % settings.log_every == 0 or last
            of_step, judged, grad_norm = training.step(step, labels, tokens, judge if logging else None)
            losses.unseen.append(of_step)
            pace.tokens += fabric.world_size * tokens.numel()

            evaluating = done % config.evaluation.every == 0 or last
            sampling = done in to_sample
            # Several processes must stop at the same step: they ask each other now and then only.
            stopping = stop.agreed(fabric) if logging or fabric.world_size == 1 else 0
            saving = done % settings.checkpoint_every == 0 or last or stopping
            # By the clock, too: several processes' clocks would not agree.
            saving = saving or (fabric.world_size == 1 and checkpoints.due.now())
            if not (logging or evaluating or sampling or saving):
                continue

            losses.settle(done)
            metrics: dict[str, float] = {}
            if judged is not None:
                metrics |= prediction_metrics(total(fabric, judged), "train") | pace.metrics(done)
                metrics |= {f"train/{name}": mean for name, mean in losses.means().items()}
                metrics["train/grad_norm"] = float(gathered(grad_norm))
                metrics["train/lr"] = learning_rate(settings, step)
            if evaluating or sampling:
                kept = Kept(folder / PROGRESS / f"evaluated-{done}-{fabric.global_rank}.safetensors")
                found_here, sums = evaluate(training.evaluated_model(), kept=kept)
                metrics |= found_here
                if last and journal is not None:
                    save_arrays(folder / "predictions.safetensors", by_position(sums))
                if not math.isfinite(metrics["val/token_nll"]):
                    raise Diverged(done)
            if measure is not None and sampling:
                metrics |= measure(original_order(training.evaluated_model(), rearrangement), done)
            if journal is not None and metrics:
                journal.write(done, metrics)
                shutil.rmtree(folder / PROGRESS, ignore_errors=True)  # its result is written
            if saving:
                tensors = training.tensors()
                state = {"step": done, "sums": losses.sums, "count": losses.count, "precision": precision.state_dict()}
                if fabric.is_global_zero:
                    checkpoints.save(done, tensors, state)
            if stopping:
                stop.obey(stopping)
            pace.restart()
    return training.evaluated_model()


def _evaluation(
    fabric: Fabric, config: TrialConfig, codes: Codes, rearrangement: Rearrangement, judge: Judge
) -> Callable[..., tuple[dict[str, float], Tensor]]:
    """Return what measures a model on this process's share of the held-out images, and adds up over all."""
    held_out = slice(fabric.global_rank, config.evaluation.images, fabric.world_size)
    return partial(
        evaluate_predictions,
        labels=torch.from_numpy(codes.test_labels[held_out]).to(fabric.device),
        tokens=torch.from_numpy(rearrangement.tokens(codes.test_tokens[held_out])).long().to(fabric.device),
        own=torch.from_numpy(rearrangement.boundaries),
        judge=judge,
        total=partial(total, fabric),
        images_at_once=min(config.train.micro_batch or EVALUATED_AT_ONCE, EVALUATED_AT_ONCE),
    )


def original_order(model: GPT, rearrangement: Rearrangement) -> GPT:
    """Undo the rearrangement of the model's rows in place, so that its tokens index the original codebook."""
    model.rearrange_vocabulary(torch.from_numpy(rearrangement.permutation))
    return model
