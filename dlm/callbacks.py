"""What happens beside the training step: when to evaluate, when to stop, what to write, what to keep."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from tqdm import tqdm

from dlm.files import append_row
from dlm.metrics import Score
from dlm.run import AtomicCheckpointIO, RunDirectory


def evaluation_steps(total: int, steps_per_epoch: float, per_octave: int, first_epoch: float) -> list[int]:
    """Steps at epochs first_epoch * 2^(i / per_octave), and the last: evenly spaced on a logarithmic axis.

    Every run of a study evaluates at the same epochs, so that curves can be compared point by point.
    """
    marks, i = set(), 0
    while (epoch := first_epoch * 2 ** (i / per_octave)) * steps_per_epoch < total:
        marks.add(max(1, round(epoch * steps_per_epoch)))
        i += 1
    return sorted(marks | {total})


def ends_a_step(trainer: Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch is the last of its optimiser step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def loss_row(scores: dict[str, Score]) -> dict[str, float]:
    """Held-out losses with their errors, nats per token, as rows and loggers name them."""
    parts = ("nll", "se", "se_draws")
    return {f"{split}/{part}": getattr(score, part) for split, score in scores.items() for part in parts}


def window_losses(score: Score) -> list[float]:
    """The loss of every window, as it is kept."""
    return [round(value, 6) for value in score.per_window]


class Ema(WeightAveraging):
    """Exponential moving average with a warm-up: decay_n = min(decay, (1 + n) / (10 + n)).

    A constant decay would still hold the initialisation when a short run is already over-fitting. Evaluations see
    the average; checkpoints keep both.
    """

    def __init__(self, decay: float):
        def update(averaged, current, count):
            keep = min(decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(averaged, current, 1 - keep)  # pyright: ignore[reportPrivateImportUsage]

        super().__init__(use_buffers=False, multi_avg_fn=update)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Average where the model will be: Lightning sets callbacks up before it moves the model to its device.
        The counter stays on the host, where reading it stalls nothing."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def averaged(self) -> dict[str, torch.Tensor]:
        """The state of the model with its averaged weights."""
        assert self._average_model is not None
        return {name: value.cpu() for name, value in self._average_model.module.state_dict().items()}


class EvaluationSchedule(Callback):
    """Runs Lightning's validation at the given steps, and only there."""

    def __init__(self, steps: list[int]):
        self.steps = set(steps)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        due = ends_a_step(trainer, batch_idx) and trainer.global_step + 1 in self.steps
        trainer.val_check_batch = 1 if due else float("inf")


class OverfitStop(Callback):
    """Ends a run whose tune loss has been `margin` nats per token above its best for two evaluations in a row."""

    def __init__(self, margin: float):
        self.margin = margin
        self.best: tuple[float, float] = (float("inf"), 0.0)  # (loss, epoch)
        self.above = 0
        self.reason: str | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss, epoch = pl_module.scores["tune"].nll, trainer.datamodule.epoch_of(trainer.global_step)  # pyright: ignore
        if loss < self.best[0]:
            self.best = (loss, epoch)
        gap = loss - self.best[0]
        self.above = self.above + 1 if gap > self.margin else 0
        if self.above >= 2:
            trainer.should_stop = True
            self.reason = (
                f"stopped at epoch {epoch:g}: the tune loss {loss:.3f} is {gap:.2f} nats above its best "
                f"{self.best[0]:.3f} at epoch {self.best[1]:g}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that had been stopped and was killed before its record was written stays stopped."""
        trainer.should_stop = self.reason is not None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "above": self.above, "reason": self.reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.above, self.reason = tuple(state_dict["best"]), state_dict["above"], state_dict["reason"]


class KeepLast(Checkpoint):
    """Saves `last.ckpt` every few steps and after each evaluation, so that no evaluation is lost or repeated."""

    def __init__(self, path: Path, every: int, evaluations: list[int]):
        self.path, self.every, self.evaluations = path, every, set(evaluations)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count micro-batches anew: a run may resume with another `accumulate`; steps begin with the first."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        for count in (progress["total"], progress["current"]):
            late = count["ready"] - count["completed"]  # a checkpoint of on_train_batch_end is one behind
            count.update(ready=batches, started=batches, processed=batches, completed=batches - late)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if ends_a_step(trainer, batch_idx) and step % self.every == 0 and step not in self.evaluations:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class KeepBest(Checkpoint):
    """Saves `best.ckpt` whenever the tune loss is the lowest so far. The report split is never looked at."""

    def __init__(self, path: Path):
        self.path = path
        self.loss, self.step, self.epoch = float("inf"), 0, 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = pl_module.scores["tune"].nll  # pyright: ignore
        if loss < self.loss:
            self.loss, self.step = loss, trainer.global_step
            self.epoch = trainer.datamodule.epoch_of(self.step)  # pyright: ignore[reportAttributeAccessIssue]
            trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "step": self.step, "epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss, self.step, self.epoch = (state_dict[k] for k in ("loss", "step", "epoch"))


class KeepForks(Checkpoint):
    """Saves the whole state at the steps where branches leave the trunk: {step: path}."""

    def __init__(self, paths: dict[int, Path]):
        self.paths = paths

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_a_step(trainer, batch_idx) and trainer.global_step in self.paths:
            trainer.save_checkpoint(self.paths[trainer.global_step])


class KeepSnapshots(Callback):
    """Keeps the averaged weights, and nothing else, at some steps: {step: path}."""

    def __init__(self, paths: dict[int, Path], ema: Ema):
        self.paths, self.ema = paths, ema

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if ends_a_step(trainer, batch_idx) and trainer.is_global_zero and trainer.global_step in self.paths:
            content = {"state_dict": self.ema.averaged(), "identity": pl_module.identity}
            AtomicCheckpointIO().save_checkpoint(content, self.paths[trainer.global_step])


class Progress(Callback):
    """A bar with the time left on a terminal; anywhere else, a line at each evaluation."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        hidden = not (trainer.is_global_zero and sys.stderr.isatty())
        self.bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", disable=hidden)
        self.begun = (time.perf_counter(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores: dict[str, Score] = pl_module.scores  # pyright: ignore[reportAssignmentType]
        line = ", ".join(f"{split} {score.nll:.4f}" for split, score in scores.items())
        if not self.bar.disable:
            self.bar.set_postfix_str(line)
        elif trainer.is_global_zero:
            clock, first = self.begun
            step, total = trainer.global_step, trainer.max_steps
            left = (time.perf_counter() - clock) * (total - step) / max(step - first, 1) / 60
            epoch = trainer.datamodule.epoch_of(step)  # pyright: ignore[reportAttributeAccessIssue]
            print(f"  epoch {epoch:g}, step {step} of {total}: {line}; {left:.1f} minutes left", flush=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()


class RunLog(Callback):
    """Writes metrics.jsonl and windows.jsonl, and the same numbers to W&B with epoch, tokens and flops as axes.

    Counters are exact integers or float64 (Lightning's own logging would round them to float32).
    """

    def __init__(self, run: RunDirectory, every: int, flops_per_token: float):
        self.run, self.every, self.flops_per_token = run, every, flops_per_token
        self.seconds, self.evaluation_seconds = 0.0, 0.0  # of training and of evaluation, over all resumptions
        self.scored: Any = 0  # positions that carried a loss: about half of the tokens in masked diffusion
        self.clock = time.perf_counter()
        self.lap = (0, 0.0)  # (step, training seconds) of the last row
        self.losses: list[torch.Tensor] = []  # (loss, nelbo) of the micro-batches of this step

    def axes(self, trainer: Trainer) -> dict[str, Any]:
        data, step = trainer.datamodule, trainer.global_step  # pyright: ignore[reportAttributeAccessIssue]
        tokens = step * data.batch_size * data.source.seq_len
        return {
            "step": step,
            "epoch": data.epoch_of(step),
            "tokens": tokens,
            "targets": int(self.scored),
            "flops": tokens * self.flops_per_token,
            "seconds": round(self.seconds, 3),
        }

    def write(self, trainer: Trainer, row: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            append_row(self.run.metrics, row)
            for logger in trainer.loggers:
                logger.log_metrics(row, trainer.global_step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock = time.perf_counter()
        self.lap = (trainer.global_step, self.seconds)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.seconds += now - self.clock
        self.clock = now
        self.scored = self.scored + outputs["scored"]  # a tensor: reading it here would stall a GPU
        self.losses.append(torch.stack([outputs["loss"].detach(), outputs["nelbo"]]))
        step = trainer.global_step
        if not ends_a_step(trainer, batch_idx):
            return
        micro_batches, self.losses = torch.stack(self.losses), []
        if step % self.every:
            return
        axes = self.axes(trainer)
        elapsed, done = self.seconds - self.lap[1], step - self.lap[0]
        self.lap = (step, self.seconds)
        loss, nelbo = trainer.strategy.reduce(micro_batches.mean(0), reduce_op="mean")
        row = axes | {
            "train/loss": loss.item() * trainer.accumulate_grad_batches,  # Lightning has divided it
            "train/nelbo": nelbo.item(),
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "tokens_per_second": round(done * axes["tokens"] / max(step, 1) / max(elapsed, 1e-9), 1),
        }
        self.write(trainer, row | getattr(pl_module, "learned_schedule", dict)())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.perf_counter()
        self.evaluation_seconds += now - self.clock
        self.clock = now
        scores: dict[str, Score] = pl_module.scores  # pyright: ignore[reportAssignmentType]
        if trainer.is_global_zero:
            for split, score in scores.items():
                row = {"step": trainer.global_step, "split": split, "nll": window_losses(score)}
                append_row(self.run.windows, row)
        self.write(trainer, self.axes(trainer) | loss_row(scores))

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "evaluation_seconds": self.evaluation_seconds, "scored": int(self.scored)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for key, value in state_dict.items():
            setattr(self, key, value)


class BranchLog(RunLog):
    """Counts on from the trunk's counters, and writes the held-out losses at the end of a branch as one row."""

    def __init__(self, run: RunDirectory, flops_per_token: float, epoch: float, logger: Any = None):
        super().__init__(run, every=sys.maxsize, flops_per_token=flops_per_token)
        self.epoch, self.logger = epoch, logger

    @property
    def state_key(self) -> str:
        return RunLog.__qualname__

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores: dict[str, Score] = pl_module.scores  # pyright: ignore[reportAssignmentType]
        losses = loss_row(scores)
        if trainer.is_global_zero:
            windows = {split: window_losses(score) for split, score in scores.items()}
            row = self.axes(trainer) | losses | {"epoch": self.epoch, "windows": windows}
            append_row(self.run.branches, row)
        if self.logger is not None:
            cooled = {f"cooled/{key}": value for key, value in losses.items()}
            self.logger.log_metrics(cooled | {"epoch": self.epoch})
