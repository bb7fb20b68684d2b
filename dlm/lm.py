"""The LightningModules: one per paradigm, each holding only what is truly its own.

    LanguageModel            optimiser, seeded noise, held-out scores, checkpoint identity
      AutoregressiveLM       exact likelihood; cached sampling; disturbed inputs, several orders, permuted text
      DiffusionLM            a process and its bound
        MaskedDiffusionLM    MD4, any-order, GenMD4; and autoregressive as well, dlm.dual.DualLM
        UniformDiffusionLM   "Shuffle"
        FlowMatchingLM       discrete flow matching, mask or uniform source

A batch is {x0 [B L], target [B L]} with, in training, its place in the stream (step, rows, size) and, in
evaluation, its window numbers (index).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm import likelihood, sampling
from dlm.augment import MaskedInputs, Orders, Permutation, ReplacedInputs
from dlm.backbone import Transformer
from dlm.data.source import HELD_OUT
from dlm.errors import UserError
from dlm.metrics import Score, WindowNLL
from dlm.noise import Stream, generator, lattice, stream_seed, uniforms
from dlm.optimisation import Optimisation
from dlm.process import Bound, FlowMatching, GenMaskedDiffusion, MaskedDiffusion, Process, UniformDiffusion


class LanguageModel(lightning.LightningModule):
    """What every paradigm shares. Subclasses say what a training bound and a held-out score are."""

    samplers: dict[str, Callable[..., sampling.Sample]]
    noise_draws = 1
    network_passes = 1

    def __init__(
        self,
        backbone: Transformer,
        optim: Optimisation | None = None,
        seed: int = 0,
        eval_draws: int = 8,
        total_steps: int = 1000,
    ):
        super().__init__()
        self.backbone = backbone
        self.optim = optim or Optimisation()
        self.seed, self.eval_draws, self.total_steps = seed, eval_draws, total_steps
        self.held_out = torch.nn.ModuleDict({split: WindowNLL() for split in HELD_OUT})
        self.scores: dict[str, Score] = {}
        self.identity: dict[str, Any] = {"vocab_size": backbone.vocab_size, "method": type(self).__name__}

    @property
    def vocab_size(self) -> int:
        return self.backbone.vocab_size

    def bound(
        self,
        x0: Int[Tensor, "B L"],
        target: Bool[Tensor, "B L"],
        places: Float[Tensor, " B"],
        noise: Float[Tensor, "draws B L"],
    ) -> Bound:
        """The training bound at times `places` on [0, 1) under uniform `noise`."""
        raise NotImplementedError

    def nll_draws(
        self, x0: Int[Tensor, "B L"], target: Bool[Tensor, "B L"], index: Int[Tensor, " B"], draws: int
    ) -> Float[Tensor, "B draws"]:
        """Unbiased draws of the headline score (`bound_kind`) of held-out windows, nats per window."""
        return self.headline.draws(self.backbone, x0, target, index, draws, self.seed_of_evaluation)

    seed_of_evaluation = 0  # common random numbers: the same for every run, so that losses compare in pairs
    also_reported: tuple[str, ...] = ()
    """Likelihoods of a record besides the headline and the left-to-right one, where the model has them."""

    def likelihoods(
        self, steps: int | None = None, grid: str | None = None, permutation: Permutation | None = None
    ) -> dict[str, likelihood.Kind]:
        """Every likelihood that the model has, by name, the headline first.

        Args:
            steps, grid: of the T-step bound; a process of T steps has its own.
            permutation: the order of the chain rule `permuted`, which a mask predictor has in any order that it is
                given here.

        Raises:
            UserError: for another number of steps, another grid, or another order than the model's own.
        """
        raise NotImplementedError

    def flops_per_token(self, length: int, causal: bool | None = None) -> float:
        """Of training, forward and backward, over all network passes of a step; `causal=False` counts full
        attention whatever the network does."""
        return self.backbone.flops_per_token(length, causal) * self.network_passes

    @property
    def headline(self) -> likelihood.Kind:
        return next(iter(self.likelihoods().values()))

    @property
    def bound_kind(self) -> str:
        """The name under which the headline score is reported."""
        return self.headline.bound

    def sampler_name(self, sampler: str | None) -> str:
        """The sampler asked for, or the first of `samplers`.

        Raises:
            UserError: for a sampler that this model does not have.
        """
        name = sampler or next(iter(self.samplers))
        if name not in self.samplers:
            raise UserError(f"{type(self).__name__} samples by {', '.join(self.samplers)}, not by {name!r}")
        return name

    def sample(
        self,
        given: Int[Tensor, "B L"],
        free: Bool[Tensor, "B L"],
        rng: torch.Generator,
        sampler: str | None = None,
        **options: Any,
    ) -> sampling.Sample:
        """Generate the `free` positions, by the first of `samplers` unless another is named."""
        return self.samplers[self.sampler_name(sampler)](given, free, rng, **options)

    # -- training -----------------------------------------------------------------------------------------

    def training_noise(self, batch: dict[str, Any]) -> tuple[Float[Tensor, " B"], Float[Tensor, "draws B L"]]:
        """Times and corruption noise: functions of (seed, global batch, row), for any number of processes."""
        step, rows, size = batch["step"], list(map(int, batch["rows"])), batch["size"]
        places = lattice(generator(self.seed, Stream.TIME, step).random(), rows, size)
        keys = [step * size + row for row in rows]
        noise = uniforms(self.seed, Stream.CORRUPTION, keys, self.noise_draws, batch["x0"].shape[1])
        return places.to(self.device), noise.transpose(0, 1).to(self.device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The objective per target of the global batch, so that no process weighs more than its targets.

        Accumulated micro-batches weigh equally, which is the same thing while every position is a target.
        """
        if self.backbone.random_in_training:
            torch.manual_seed(
                stream_seed(self.seed, Stream.DROPOUT, batch["step"] * batch["size"] + int(batch["rows"][0]))
            )
        bound = self.bound(batch["x0"], batch["target"], *self.training_noise(batch))
        counts = torch.stack([batch["target"].sum(), bound.scored])
        world = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            world = dist.get_world_size()
        targets, scored = (counts[0] / world).to(bound.objective.dtype), counts[1]
        nelbo = bound.nelbo.detach().sum() / targets
        return {"loss": bound.objective.sum() / targets, "nelbo": nelbo, "scored": scored}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        """Clip the global norm here: Lightning's mixed precision refuses to clip for a fused optimiser, because of
        loss scaling, of which bf16 has none."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), self.optim.clip)

    def configure_optimizers(self) -> Any:
        optimizer = self.optim.optimizer(self)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: self.optim.factor(i, self.total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- held-out scores ----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        for metric in self.held_out.values():
            metric.reset()  # pyright: ignore[reportCallIssue]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        nats = self.nll_draws(batch["x0"], batch["target"], batch["index"], self.eval_draws)
        self.held_out[HELD_OUT[dataloader_idx]].update(nats, batch["target"].sum(1), batch["index"])  # pyright: ignore[reportCallIssue]

    def on_validation_epoch_end(self) -> None:
        self.scores = {split: metric.compute() for split, metric in self.held_out.items()}  # pyright: ignore

    # -- what a checkpoint says about itself ----------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["identity"] = self.identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse weights of another vocabulary, method, parameterisation or corpus.

        Raises:
            UserError: naming the first difference.
        """
        saved = checkpoint.get("identity", {})
        for key, ours in self.identity.items():
            if key in saved and saved[key] != ours:
                raise UserError(f"the checkpoint was trained with {key}={saved[key]}, this run has {key}={ours}")


class AutoregressiveLM(LanguageModel):
    """-log p(x0) = sum_i -log p(x0^i | x0^{<i}), the first token after a start symbol: every token is scored.

    In training it may read `inputs` other than the tokens, in several `orders` (dlm.augment); with `auxiliary` = w
    the disturbed sequence is a second network pass that adds w times its loss to the clean one (MIR, Xu et al.
    2026: w = 0.4). `nelbo` in training is the -log p of what was read, so only without
    `inputs`, or with `auxiliary`, that of the clean sequence; and only in one order a likelihood of the model that
    is scored: held-out scores are always clean and from left to right.

    With a `permutation` pi it is a model of pi(x) instead (the pi-learner of Kim et al. 2025): in training, scores
    and samples alike, slot j reads and predicts what stands at position order[j] of the text. The network is told
    nothing of it. `permuted`, its likelihood, is exact for whole texts; of a target it is -log p given the tokens
    that are read before it.

    Raises:
        UserError: for a backbone that is not causal, an `auxiliary` weight without disturbed inputs, or a
            permutation beside several orders.
    """

    def __init__(
        self,
        backbone: Transformer,
        inputs: MaskedInputs | ReplacedInputs | None = None,
        auxiliary: float | None = None,
        orders: Orders | None = None,
        permutation: Permutation | None = None,
        **kwargs: Any,
    ):
        if not backbone.causal:
            raise UserError("an autoregressive model needs backbone.causal=true")
        if auxiliary is not None and (inputs is None or auxiliary <= 0):
            raise UserError(f"method.auxiliary={auxiliary:g} must be positive, and weighs disturbed method.inputs")
        super().__init__(backbone, **kwargs)
        self.inputs, self.auxiliary = inputs, auxiliary
        self.orders = orders if orders is not None and orders.several else None
        self.permutation: Permutation | None = None
        if permutation is not None and permutation.moves:
            self.permutation = replace(permutation, length=backbone.max_len)
        if self.orders is not None and self.permutation is not None:
            raise UserError("method.orders draws each sequence's order, method.permutation fixes it: give one")
        if self.inputs is not None or self.orders is not None:
            self.noise_draws = 4  # two of the inputs', two of the orders'
        self.network_passes = 1 if auxiliary is None else 2
        self.samplers = {"autoregressive": self._autoregressive}

    def likelihoods(self, steps=None, grid=None, permutation=None):
        if permutation not in (None, self.permutation):
            raise UserError(f"closeness={permutation.closeness}: an autoregressive model has one order, its own")
        if self.permutation is not None:
            return likelihood.autoregressive_kinds(self.vocab_size, permutation=self.permutation)
        listed = self.orders.listed if self.orders is not None and self.orders.fixed else None
        return likelihood.autoregressive_kinds(self.vocab_size, listed)

    def bound(self, x0, target, places, noise):
        if self.permutation is None:
            return self._bound(x0, target, places, noise)
        order = self.permutation.order(x0.shape[1]).to(x0.device)
        bound = self._bound(x0[:, order], target[:, order], places, noise)
        return bound._replace(nelbo=bound.nelbo[:, order.argsort()])

    def _bound(self, x0, target, places, noise):
        """Of sequences as they are read."""
        order = None if self.orders is None else self.orders.draw(noise[2:])

        def nll_of(inputs):
            return likelihood.autoregressive_nll(self.backbone, x0, target, self.vocab_size, inputs, order)

        if self.inputs is None:
            nll = nll_of(None)
            return Bound(nll, nll.sum(1), target.sum())
        read = torch.where(target, self.inputs(x0, places, noise[:2], self.vocab_size), x0)
        disturbed = nll_of(read)
        if self.auxiliary is None:
            return Bound(disturbed, disturbed.sum(1), target.sum())
        clean = nll_of(None)
        return Bound(clean, clean.sum(1) + self.auxiliary * disturbed.sum(1), 2 * target.sum())

    def _autoregressive(self, given, free, rng, watch=None, **options):
        """Raises UserError for a prompt that does not come first, in the order in which this model reads."""
        if self.permutation is None:
            return sampling.autoregressive(self.backbone, given, free, rng, watch=watch, **options)
        order = self.permutation.order(given.shape[1]).to(given.device)
        back, hidden = order.argsort(), free[:, order]
        if (hidden[:, :-1] & ~hidden[:, 1:]).any():
            raise UserError(
                "a model of permuted text can be given only the tokens that it reads first, "
                f"not those of this prompt (closeness={self.permutation.closeness}, seed {self.permutation.seed})"
            )
        seen = None if watch is None else lambda step, x: watch(step, x[:, back])
        sample = sampling.autoregressive(self.backbone, given[:, order], hidden, rng, watch=seen, **options)
        return sample._replace(x=sample.x[:, back], fixed_at=sample.fixed_at[:, back])


class DiffusionLM(LanguageModel):
    """A process, and a network that undoes it."""

    process_types: tuple[type[Process], ...] = (Process,)
    process: Any

    def __init__(self, process: Process, backbone: Transformer, **kwargs: Any):
        if not isinstance(process, self.process_types):
            expected = " or ".join(t.__name__ for t in self.process_types)
            raise UserError(f"{type(self).__name__} trains {expected}, not {type(process).__name__}")
        if backbone.causal:
            raise UserError(f"{type(process).__name__} reads both directions: it needs backbone.causal=false")
        if process.time_dependent and backbone.time is None:
            raise UserError(
                f"{type(process).__name__}'s optimal network depends on the time: set backbone.time=additive"
            )
        super().__init__(backbone, **kwargs)
        self.process = process
        self.noise_draws, self.network_passes = process.noise_draws, process.network_passes
        self.identity["predicts"] = process.predicts
        self.samplers = {"ancestral": self._bind(sampling.ancestral), "tau_leap": self._bind(sampling.tau_leap)}
        if process.mask_predictor:
            self.samplers |= {
                "first_hitting": self._bind(sampling.first_hitting),
                "ordered": self._bind(sampling.ordered),
                "remdm": self._bind(sampling.remdm),
            }
        if isinstance(process, GenMaskedDiffusion):
            self.samplers["thinning"] = self._bind(sampling.thinning)

    def _bind(self, sampler):
        return lambda given, free, rng, **options: sampler(
            self.process, self.backbone, given, free, rng, **options
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.process.end_of_step()

    def bound(self, x0, target, places, noise):
        return self.process.loss(self.backbone, x0, self.process.times(places), target, noise)

    def likelihoods(self, steps=None, grid=None, permutation=None):
        own = self.process.steps
        if own is not None and (steps not in (None, own) or grid not in (None, "uniform")):
            raise UserError(f"{type(self.process).__name__} has its own {own} steps on a uniform grid")
        steps, grid = own or steps or sampling.DEFAULT_STEPS, grid or "uniform"
        times = sampling.time_grid(steps, grid, self.process.t_max).flip(0)
        scores = {name: score for name, score in sampling.POLICIES.items() if score is not None}
        return likelihood.kinds(self.process, scores, times, grid, permutation)


class MaskedDiffusionLM(DiffusionLM):
    """MD4, any-order and GenMD4; logs what GenMD4's schedule has learned."""

    process_types = (MaskedDiffusion,)

    def learned_schedule(self) -> dict[str, float]:
        """The least, mean and largest exponent w of GenMD4's schedule; empty for a fixed one."""
        if not isinstance(self.process, GenMaskedDiffusion):
            return {}
        w = self.process.schedule.w.detach()
        return {"w/min": w.min().item(), "w/mean": w.mean().item(), "w/max": w.max().item()}


class UniformDiffusionLM(DiffusionLM):
    """Shuffle: SEDD's uniform process in the leave-one-out parameterisation."""

    process_types = (UniformDiffusion,)


class FlowMatchingLM(DiffusionLM):
    """Discrete flow matching. Its uniform source is scored by the tight bound of uniform diffusion (after turning
    posteriors into leave-one-out posteriors); the path bound of flow matching itself is reported beside it."""

    process_types = (FlowMatching,)

    also_reported = ("flow_path",)
