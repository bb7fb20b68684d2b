"""The typed shape of a run's configuration: what may be set, of which type, and what it means.

Hydra merges conf/ into these classes, so a mistyped key or a value of the wrong type is refused when the
configuration is composed. Only the entry points import this module; everything below takes plain arguments.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import hydra
import hydra.errors
import omegaconf.errors
from hydra.core.config_store import ConfigStore
from omegaconf import II, MISSING, OmegaConf

from dlm.errors import UserError
from dlm.lm import Optimisation

PACKAGE = Path(__file__).parent


def bundled(name: str) -> Path:
    """conf/ or experiments/: beside the package in a checkout, inside it in a wheel."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
"""${sum:a,b}: a sequence is as long as its parts, in the configurations of conf/data."""


def puzzle_length(size: int, name: str) -> int:
    """${puzzle_length:${data.size},${data.format}}: the tokens of a Sudoku."""
    from dlm.data.sudoku.formats import puzzle_length as length  # numba takes half a second to import

    return length(size, name)


def zebra_length(houses: int, attributes: int, name: str, clues: int | None) -> int:
    """${zebra_length:${data.houses},${data.attributes},${data.format},${data.clues}}: those of a zebra puzzle."""
    from dlm.data.zebra.formats import zebra_length as length

    return length(houses, attributes, name, clues)


OmegaConf.register_new_resolver("puzzle_length", puzzle_length, replace=True)
OmegaConf.register_new_resolver("zebra_length", zebra_length, replace=True)


def methods() -> set[str]:
    """The names of conf/method."""
    return {path.stem for path in (bundled("conf") / "method").glob("*.yaml")}


@dataclass
class BackboneConfig:
    """Arguments of dlm.backbone.Transformer."""

    _target_: str = "dlm.backbone.Transformer"
    vocab_size: int = II("vocab_size")
    max_len: int = II("seq_len")
    dim: int = 96
    depth: int = 3
    heads: int = 4
    mlp: str = "swiglu"
    causal: bool = False
    time: str = "none"
    dropout: float = 0.0
    tie: bool = False
    attention: str = "auto"
    drop_attention: float = 0.0
    positions: str = "rotary"


@dataclass
class EvaluationConfig:
    """When and how finely held-out windows are scored."""

    per_octave: int = 3  # evaluations per doubling of the epochs, from `first_epoch` on
    first_epoch: float = 1.0
    windows: int | None = 64  # per split, on the curve; null scores all
    draws: int = 8  # Monte-Carlo draws per window, on the curve
    batch_size: int = 16  # windows per forward pass (times draws)
    final_windows: int | None = None  # of the report split, at the chosen checkpoint
    final_draws: int = 32
    left_to_right_windows: int | None = 64  # each costs one row per token
    samples: int = 4
    sample_steps: int = 64
    snapshots: list[float] = field(default_factory=list)  # epochs at which the averaged weights are kept
    overfit_margin: float | None = None  # stop when the tune loss is this far above its best, twice in a row


@dataclass
class BranchesConfig:
    """Cooled-down branches of a run at a constant rate: each ends at one of `epochs`, its last `cooldown` share of
    the steps lowering the rate to zero. It is the run of so many epochs with `optim.cooldown`, bit for bit."""

    epochs: list[float] = field(default_factory=list)
    cooldown: float = 0.15


@dataclass
class TrainerConfig:
    """Where a run happens. Nothing here changes its name: a run may move between machines and resume."""

    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"  # auto, 32-true, bf16-mixed
    compile: str = "auto"  # auto, true, false
    accumulate: int = 1
    threads: int | None = None  # processor threads of this process; null leaves torch's choice
    num_workers: int = 0
    log_every: int = 20
    checkpoint_every: int = 200
    progress: bool = True


@dataclass
class LoggerConfig:
    wandb: bool = False
    mode: str = "offline"
    project: str = "dlm"


@dataclass
class RunConfig:
    """Everything about one run."""

    study: str = "adhoc"
    scale: str = "local"
    cell: str | None = None  # a study's name for the data budget
    arm: str | None = None  # a study's name for the method with its settings
    seed: int = 0
    seq_len: int = 128
    vocab_size: int = MISSING  # filled from the data
    batch_size: int = 16
    epochs: float = 10.0
    steps: int | None = None  # instead of epochs
    output_dir: str = "${oc.env:DLM_OUTPUT,outputs}"
    data: Any = MISSING
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    method: Any = MISSING
    optim: Optimisation = field(default_factory=Optimisation)
    branches: BranchesConfig = field(default_factory=BranchesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


ConfigStore.instance().store(name="run_schema", node=RunConfig)

UNNAMED = ("trainer", "logger", "output_dir", "vocab_size", "study", "scale", "cell", "arm")


def run_name(cfg: Any) -> str:
    """`<cell>-<arm>-s<seed>-<hash>`: stable, and different whenever anything that decides the numbers is.

    Where a run happens (trainer, logger, folders) is no part of it, nor the vocabulary, which the data decides.
    """
    config = resolved(OmegaConf.merge(cfg, {"vocab_size": 0}))
    decisive = {k: v for k, v in config.items() if k not in UNNAMED}
    decisive["data"] = {k: v for k, v in decisive["data"].items() if k != "cache_dir"}
    decisive["evaluation"] = {k: v for k, v in decisive["evaluation"].items() if k != "batch_size"}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
    method = config["method"].get("process", config["method"])["_target_"].rsplit(".", 1)[-1].lower()
    parts = [config["cell"], config["arm"] or method, f"s{config['seed']}", digest]
    return "-".join(part for part in parts if part)


def run_path(cfg: Any) -> Path:
    return Path(cfg.output_dir) / cfg.study / cfg.scale / "runs" / run_name(cfg)


def resolved(cfg: Any) -> dict[str, Any]:
    """The configuration as plain, resolved data (a DictConfig in a checkpoint could not be loaded again)."""
    return OmegaConf.to_container(cfg, resolve=True)  # pyright: ignore[reportReturnType]


POSITIVE = (
    *("seq_len", "backbone.dim", "backbone.depth", "backbone.heads", "trainer.threads", "trainer.accumulate"),
    *("trainer.log_every", "trainer.checkpoint_every", "evaluation.per_octave", "evaluation.first_epoch"),
    *("evaluation.draws", "evaluation.batch_size", "evaluation.final_windows", "evaluation.final_draws"),
    *("evaluation.left_to_right_windows", "evaluation.sample_steps"),
)


def check_positive(cfg: Any, keys: tuple[str, ...] = POSITIVE) -> None:
    """Before any work, not after it.

    Raises:
        UserError: naming the first of these settings that is zero or less; null is left to its meaning.
    """
    for key in keys:
        value = OmegaConf.select(cfg, key)
        if value is not None and value <= 0:
            raise UserError(f"{key}={value} must be positive")
    if (OmegaConf.select(cfg, "evaluation.samples") or 0) < 0:
        raise UserError(f"evaluation.samples={cfg.evaluation.samples} must be zero or more")
    for key in ("evaluation.snapshots", "branches.epochs"):
        if any(epoch <= 0 for epoch in OmegaConf.select(cfg, key) or []):
            raise UserError(f"{key}={list(OmegaConf.select(cfg, key))}: epochs must be positive")


def check_branches(cfg: Any) -> None:
    """Raises UserError for branches that no trunk can carry."""
    branches = cfg.branches
    if not branches.epochs:
        return
    if not 0 < branches.cooldown < 1:
        raise UserError(f"branches.cooldown={branches.cooldown:g} must be in (0, 1)")
    if cfg.optim.cooldown > 0:
        raise UserError(
            f"optim.cooldown={cfg.optim.cooldown:g}: branches grow from a trunk whose rate stays constant"
        )
    if cfg.steps is None and max(branches.epochs) > cfg.epochs:
        raise UserError(f"branches.epochs={list(branches.epochs)}: the trunk ends at epoch {cfg.epochs:g}")


def command_line(schema: type, arguments: list[str]) -> Any:
    """`key=value` arguments as an instance of a dataclass.

    Raises:
        UserError: for an unknown key, a wrong type or anything that is not key=value.
    """
    for argument in arguments:
        key = argument.split("=", 1)[0]
        if "=" not in argument or key not in {f.name for f in fields(schema)}:
            known = ", ".join(f.name for f in fields(schema))
            raise UserError(f"do not understand {argument!r}: expected key=value with a key of {known}")
        if argument == f"{key}=":
            raise UserError(f"{key}= has no value")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist(arguments)))


CONFIG_ERRORS = (
    hydra.errors.HydraException,
    omegaconf.errors.OmegaConfBaseException,
)


def user_error(error: BaseException | None) -> UserError | None:
    """The mistake that an error was raised in the handling of."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def one_line(error: BaseException) -> str:
    """An error of Hydra's or ours as one line: what is wrong and where, with the cause that Hydra wrapped."""
    cause = error.__cause__ if isinstance(error, hydra.errors.HydraException) else None
    if isinstance(error, omegaconf.errors.InterpolationResolutionError):
        error = user_error(error) or error  # of a resolver
    if isinstance(error, hydra.errors.InstantiationException) and isinstance(cause, UserError):
        error, cause = cause, None
    text = " ".join(str(error).split()).split(" Config search path")[0]
    return text if cause is None else f"{text} ({' '.join(str(cause).split()[:30])})"


def entry(main: Callable[[], object]) -> None:
    """Run a command: a mistake of the user's becomes one line on stderr and exit status 2.

    A reader that has seen enough (`| head`) ends it quietly, with the status of a broken pipe.
    """
    try:
        main()
        sys.stdout.flush()
    except (UserError, *CONFIG_ERRORS) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to flush at exit
        sys.exit(128 + signal.SIGPIPE)
