"""From a composed configuration to the objects it describes: the data of a run, and its model."""

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from dlm import config
from dlm.data.module import DataModule
from dlm.data.task import TaskSource
from dlm.errors import UserError
from dlm.layout import NO_LAYOUT, Layout
from dlm.lm import DiffusionLM, LanguageModel
from dlm.noise import Stream, stream_seed
from dlm.process import Process

COUNTED_AT_ONCE = 1 << 24  # tokens


def build_data(cfg: DictConfig) -> DataModule:
    """The data of a run; tells the configuration the vocabulary size it found."""
    source = instantiate(cfg.data)
    cfg.vocab_size = source.vocab_size
    evaluation = cfg.evaluation
    return DataModule(
        source,
        cfg.batch_size,
        cfg.seed,
        eval_windows=evaluation.windows,
        eval_batch_size=evaluation.batch_size,
        num_workers=cfg.trainer.num_workers,
    )


def outline(cfg: DictConfig) -> tuple[int | None, Layout]:
    """Vocabulary size and layout as far as the configuration of the data tells them: no data are made."""
    kind = get_object(cfg.data["_target_"])
    if isinstance(kind, type) and issubclass(kind, TaskSource):
        settings = config.resolved(cfg.data)
        return kind.outline(**{key: value for key, value in settings.items() if key != "_target_"})
    for key in ("data.vocab_size", "data.tokenizer.vocab_size"):
        size = OmegaConf.select(cfg, key)
        if size is not None:
            return size, NO_LAYOUT
    return None, NO_LAYOUT


def build_model(cfg: DictConfig, fingerprint: str, total_steps: int, layout: Layout = NO_LAYOUT) -> LanguageModel:
    """The model of a run, initialised from its own stream: the same weights for every method at the same seed.

    `layout` is what the data say of their slots and tokens.
    """
    torch.manual_seed(stream_seed(cfg.seed, Stream.INITIALISATION))
    backbone = instantiate(cfg.backbone, _partial_=True)(layout=layout)
    settings = {"seed": cfg.seed, "eval_draws": cfg.evaluation.draws, "total_steps": total_steps}
    make = instantiate(cfg.method, _partial_=True)
    try:
        model = make(backbone=backbone, optim=OmegaConf.to_object(cfg.optim), **settings)
    except TypeError as error:  # a key that the constructor does not know
        raise UserError(f"the method configuration does not fit {cfg.method['_target_']}: {error}") from error
    model.identity["data"] = fingerprint
    return model


def observe(model: LanguageModel, data: DataModule) -> None:
    """Let a process whose noise has the frequencies of the data count the training split, a part at a time."""
    if not (isinstance(model, DiffusionLM) and model.process.counts_tokens):
        return
    tokens, counts = data.source.tokens("train").reshape(-1), np.zeros(data.source.vocab_size, dtype=np.int64)
    for start in range(0, len(tokens), COUNTED_AT_ONCE):
        counts += np.bincount(tokens[start : start + COUNTED_AT_ONCE], minlength=len(counts))
    model.process.observe(torch.from_numpy(counts))


def build_processes(vocab_size: int) -> dict[str, Process]:
    """The process of every method that has one, by the method's name, over so many tokens and in float64."""
    methods = sorted(path.stem for path in (config.bundled("conf") / "method").glob("*.yaml"))
    found = {}
    with initialize_config_dir(str(config.bundled("conf")), version_base="1.3"):
        for name in methods:
            cfg = OmegaConf.merge({"vocab_size": vocab_size}, compose(f"method/{name}"))
            if "process" in cfg.method:
                found[name] = instantiate(cfg.method.process).double().requires_grad_(False)
    return found
