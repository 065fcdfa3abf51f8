"""Train one GPT on rearranged codes with the loss of IAR or a variant: resumable, and bit-identical when repeated.

Everything random in step s (augmentation, dropped classes, dropout) is seeded by (seed, s), and the batch is a function
of (seed, s): a resumed training needs no random state, all arms of a study see the same noise in the same order, and
any number of processes does the same, to the rounding of their sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from iar_study.codebook import Rearrangement
from iar_study.config import TrainConfig, TrialConfig, times_of, training_identity
from iar_study.data.batches import TokenBatches
from iar_study.data.codes import Codes
from iar_study.generators.gpt import GPT, make_generator
from iar_study.storage import save_arrays
from iar_study.training.checkpoint import Checkpoints, CheckpointTensors
from iar_study.training.journal import Journal
from iar_study.training.kept_weights import weights_file
from iar_study.training.objective import Objective, cluster_weight
from iar_study.training.parallel import first_of, gathered, launch, local, prepare_blocks, spread_like
from iar_study.training.progress import Losses, Pace
from iar_study.training.signals import StopRequest

Follow = Callable[[int, Mapping[str, float], GPT | None], None]
"""(step, what the journal gets of it, the model in the arm's order of codes where its weights are kept) is called in
every process."""

READERS = 2
"""Processes that read batches ahead for a GPT on a GPU."""


def step_seed(seed: int, step: int, *part: int) -> int:
    """Return the seed of the random draws of one training step, or of one part of its batch."""
    return int(np.random.SeedSequence([seed, step, *part]).generate_state(1, np.uint64)[0] >> 1)


def noise_seed(seed: int, draw: int) -> int:
    """Return the seed of the `draw`-th draw of a seed's noise, of which the seed itself is the first."""
    # NumPy fills up with 0: four numbers that end in 1 are the seed of no step, nor of a part of one.
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


def settle_torch(config: TrialConfig) -> None:
    """Let torch compute as trials do: with their threads, and the same bits each time."""
    torch.set_num_threads(config.compute.threads)
    torch.use_deterministic_algorithms(True)
    # Nothing here reads what it has not written; to fill it with NaN takes 7 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


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

    def step(self, step: int, labels: Tensor, tokens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Take 0-based `step` on this process's labels (B,) and tokens (B, T).

        Returns the terms of the loss by name, of this process, and the gradient's norm before clipping.
        """
        config, several = self.config, self.fabric.world_size > 1
        seed = noise_seed(config.seed, config.train.noise)
        noise = torch.Generator().manual_seed(step_seed(seed, step))
        # Drawn for the whole batch, on the CPU: the same classes are dropped on any device and any number of processes.
        dropped = torch.rand(config.train.batch_size, generator=noise)[self.share] < config.model.class_dropout
        labels = torch.where(dropped, self.model.cls_embedding.n_classes, labels)
        weight = cluster_weight(config, step)
        told = []
        for part, (some_labels, some_tokens) in enumerate(
            zip(labels.split(self.size), tokens.split(self.size), strict=True), start=1
        ):
            # 1 stands for the augmentations, see `TokenBatches`.
            self._seed(step_seed(seed, step, 1 + self.first_part + part))
            with self.fabric.no_backward_sync(self.objective, enabled=several and part < self.parts):
                loss, of_part = self.objective(
                    some_labels.to(self.fabric.device), some_tokens.to(self.fabric.device, non_blocking=True), weight
                )
                self.fabric.backward(loss / self.parts)
            told.append(of_part)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.train, step)
        # No error here: float16's scaler skips steps whose gradients overflow, and `Losses.settle` finds a bad loss.
        norm = self.fabric.clip_gradients(
            self.objective, self.stepper, max_norm=config.train.clip, error_if_nonfinite=False
        )
        assert norm is not None  # Fabric clips by norm
        self.stepper.step()
        self.optimizer.zero_grad()
        self._update_average(step)
        return {name: torch.stack([of_part[name] for of_part in told]).mean() for name in told[0]}, norm

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
    folder: Path,
    follow: Follow = lambda *_: None,
    fabric: Fabric | None = None,
) -> GPT:
    """Train a model, going on from the newest checkpoint in `folder`, and return it in evaluation mode.

    With `train.ema` the model that is kept, followed and returned has the moving average of the weights.

    Parameters
    ----------
    codes : the tokens, in the original order of the codes.
    rearrangement : the order and the clusters that this arm trains with.
    folder : receives `journal.jsonl`, `checkpoints/` and, `train.kept` times, the weights (see `weights_file`).
    follow : is told each point of the journal, when it is written.

    Raises
    ------
    Diverged : the loss is NaN or infinite.
    InputError : a checkpoint of other settings, a disk that is full, processes that cannot share the batches out.
    KeyboardInterrupt, SystemExit : at SIGINT and SIGTERM, once a checkpoint is written.
    """
    settings = config.train
    fabric = fabric or launch(config)
    settle_torch(config)
    training = Training(fabric, config, codes, rearrangement)
    precision = fabric.strategy.precision
    journal = Journal(folder / "journal.jsonl") if fabric.is_global_zero else None
    checkpoints = Checkpoints(folder / "checkpoints", training_identity(config))
    first, losses = 0, Losses(fabric)
    # The first process chooses for all, which have to go on from the same step.
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
    to_keep = times_of(settings.steps, settings.kept)
    pace = Pace(first, settings.steps, fabric.device)
    with StopRequest() as stop:
        for step, (tokens, labels) in enumerate(pace.batches(batches), start=first):
            done = step + 1
            of_step, grad_norm = training.step(step, labels, tokens)
            losses.unseen.append(of_step)
            pace.tokens += fabric.world_size * tokens.numel()

            keeping = done in to_keep
            logging = done % settings.log_every == 0 or keeping
            # Several processes must stop at the same step: they ask each other now and then only.
            stopping = stop.agreed(fabric) if logging or fabric.world_size == 1 else 0
            saving = done % settings.checkpoint_every == 0 or done == settings.steps or stopping
            # By the clock, too: several processes' clocks would not agree.
            saving = saving or (fabric.world_size == 1 and checkpoints.due.now())
            if not (logging or saving):
                continue

            losses.settle(done)
            if logging:
                metrics = {f"train/{name}": mean for name, mean in losses.means().items()} | pace.metrics(done)
                metrics |= {"train/grad_norm": float(gathered(grad_norm)), "train/lr": learning_rate(settings, step)}
                model = training.evaluated_model() if keeping else None
                if journal is not None:
                    if model is not None:  # first: what the journal tells of is there
                        save_arrays(weights_file(folder, done), _arrays(model))
                    journal.write(done, metrics)
                follow(done, metrics, model)
            # After the journal: steps before a checkpoint are not taken again, and their points would be lost.
            if saving:
                tensors = training.tensors()
                state = {"step": done, "sums": losses.sums, "count": losses.count, "precision": precision.state_dict()}
                if fabric.is_global_zero:
                    checkpoints.save(done, tensors, state)
            if stopping:
                stop.obey(stopping)
            pace.restart()
    return training.evaluated_model()


def _arrays(model: GPT) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}


def original_order(model: GPT, rearrangement: Rearrangement) -> GPT:
    """Undo the rearrangement of the model's rows in place, so that its tokens index the original codebook."""
    model.rearrange_vocabulary(torch.from_numpy(rearrangement.permutation))
    return model
