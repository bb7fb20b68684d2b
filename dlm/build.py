"""From a composed configuration to the objects it describes: the data of a run, and its model."""

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dlm.data.module import DataModule
from dlm.errors import UserError
from dlm.lm import LanguageModel
from dlm.noise import Stream, stream_seed


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


def build_model(cfg: DictConfig, fingerprint: str, total_steps: int) -> LanguageModel:
    """The model of a run, initialised from its own stream: the same weights for every method at the same seed."""
    torch.manual_seed(stream_seed(cfg.seed, Stream.INITIALISATION))
    backbone = instantiate(cfg.backbone)
    settings = {"seed": cfg.seed, "eval_draws": cfg.evaluation.draws, "total_steps": total_steps}
    make = instantiate(cfg.method, _partial_=True)
    try:
        model = make(backbone=backbone, optim=OmegaConf.to_object(cfg.optim), **settings)
    except TypeError as error:  # a key that the constructor does not know
        raise UserError(f"the method configuration does not fit {cfg.method['_target_']}: {error}") from error
    model.identity["data"] = fingerprint
    return model
