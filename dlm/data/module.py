"""The one data module: any source becomes the same endless training stream and the same two evaluation sets.

A batch is a dict with at least `x0` [b, L] and `target` [b, L], the positions that are destroyed and scored.
"""

import lightning
import numpy as np
import torch
from jaxtyping import Int, UInt
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dlm.data.sampler import MicroBatch, ShardedBatches, StreamSampler
from dlm.data.source import HELD_OUT, Examples, Source
from dlm.errors import UserError
from dlm.noise import Stream, uniforms

PASSAGE = 1024  # tokens


class TrainWindows(Dataset):
    """Gathers a whole micro-batch at once from the circular training stream."""

    def __init__(self, source: Source, batch_size: int, seed: int) -> None:
        self.source = source
        self.batch_size = batch_size
        self.seed = seed

    def __getitem__(self, micro: MicroBatch) -> dict:
        shape = self.source.noise_shape
        keys = micro.step * self.batch_size + micro.rows
        noise = None if shape is None else uniforms(self.seed, Stream.VIEW, keys, *shape)
        return {
            **self.source.examples("train", micro.starts, noise)._asdict(),
            "step": micro.step,
            "rows": micro.rows.tolist(),  # not a tensor: reading it back from a GPU would stall every step
            "size": self.batch_size,
        }


class EvalWindows(Dataset):
    """Gathers a batch of the fixed windows of one split, given their numbers."""

    def __init__(self, source: Source, split: str) -> None:
        self.source = source
        self.split = split

    def __getitem__(self, numbers: Int[np.ndarray, " b"]) -> dict[str, Tensor]:
        return {
            **self.source.examples(self.split, numbers * self.source.seq_len)._asdict(),
            "index": torch.from_numpy(numbers),
        }


class DataModule(lightning.LightningDataModule):
    """Training stream and evaluation windows of a source; needs Trainer(use_distributed_sampler=False).

    `batch_size` counts the sequences of one optimiser step over all processes and accumulated batches.
    `eval_windows` limits each evaluation split to that many windows, evenly spread over it.
    """

    split_names = HELD_OUT

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        eval_windows: int | None = None,
        eval_batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise UserError(f"{name}={value}: a batch holds at least one sequence")
        if eval_windows is not None and eval_windows < 1:
            raise UserError(f"eval_windows={eval_windows}: leave it null to evaluate on whole splits")
        if seed < 0:
            raise UserError(f"seed={seed} is negative")
        self.source = source
        self.batch_size = batch_size
        self.seed = seed
        self.eval_windows = eval_windows
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers

    @property
    def steps_per_epoch(self) -> float:
        """⌊U/L⌋ / B, rarely a whole number: a batch may straddle two epochs."""
        return self.source.size("train") // self.source.seq_len / self.batch_size

    def epoch_of(self, step: int) -> float:
        """How often each training token has been seen after `step` global batches."""
        return step / self.steps_per_epoch

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        accumulate = trainer.accumulate_grad_batches if trainer else 1
        sampler = StreamSampler(
            tokens=self.source.size("train"),
            seq_len=self.source.seq_len,
            batch_size=self.batch_size,
            seed=self.seed,
            aligned=self.source.aligned,
            accumulate=accumulate,
            # The step counter is restored before the loader is made: a resumed run continues where it stopped.
            start=trainer.global_step * accumulate if trainer else 0,
            **self._place,
        )
        return self._loader(TrainWindows(self.source, self.batch_size, self.seed), sampler)

    def val_dataloader(self) -> list[DataLoader]:
        """One loader for each of `split_names`."""
        return [
            self._loader(
                EvalWindows(self.source, split),
                ShardedBatches(self.window_numbers(split, self.eval_windows), self.eval_batch_size, **self._place),
            )
            for split in self.split_names
        ]

    def window_numbers(self, split: str, limit: int | None = None) -> Int[np.ndarray, " N"]:
        """Numbers of the windows of L tokens that tile the split, the remainder dropped; or `limit` of them,
        evenly spread."""
        count = self.source.size(split) // self.source.seq_len
        kept = count if limit is None else min(limit, count)
        return np.arange(kept, dtype=np.int64) * count // max(kept, 1)

    def windows(self, split: str, limit: int | None = None) -> Int[Tensor, "N L"]:
        """The tokens of those windows."""
        return self.examples(split, self.window_numbers(split, limit)).x0

    def examples(self, split: str, numbers: Int[np.ndarray, " N"]) -> Examples:
        """The windows of these numbers."""
        return self.source.examples(split, numbers * self.source.seq_len)

    def window_passages(self, split: str, limit: int | None = None) -> Int[np.ndarray, " N"]:
        """The passage of each of those windows: its document, and which PASSAGE tokens of it. Neighbouring windows
        are alike, so standard errors and bootstraps resample passages; a short document is one passage.

        A window belongs to the document that most of it comes from.
        """
        numbers, length = self.source.documents(split), self.source.seq_len
        first = {document: start for start, document in reversed(list(zip(*starts_of_runs(numbers), strict=True)))}
        keys = []
        for start in self.window_numbers(split, limit) * length:
            document = int(np.bincount(numbers[start : start + length]).argmax())
            keys.append((document, max(0, int(start) - first[document]) // PASSAGE))
        return np.unique(np.array(keys).reshape(-1, 2), axis=0, return_inverse=True)[1].reshape(-1)

    @property
    def _place(self) -> dict[str, int]:
        trainer = self.trainer
        return {"world": trainer.world_size, "rank": trainer.global_rank} if trainer else {"world": 1, "rank": 0}

    def _loader(self, dataset: Dataset, sampler: StreamSampler | ShardedBatches) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=None,  # the sampler yields whole batches
            sampler=sampler,
            num_workers=self.num_workers,
            # Its own generator, or making an iterator would advance the global stream that dropout draws from.
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )


def starts_of_runs(numbers: UInt[np.ndarray, " U"]) -> tuple[list[int], list[int]]:
    """Where each run of equal numbers begins, and its number."""
    starts = np.flatnonzero(np.diff(numbers.astype(np.int64), prepend=-1))
    return starts.tolist(), numbers[starts].tolist()
