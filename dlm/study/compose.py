"""Configurations of many similar runs: hydra.compose, with the reading of files done once per choice of groups."""

import copy

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from dlm import config


class Composer:
    """overrides -> the configuration that `python -m dlm.train` composes from them.

    Overrides that choose a file (data=pydoc, data/tokenizer=bpe) are composed once for all runs that share them;
    those that set a value are applied to a copy, by Hydra's own rule. A plan of 1,000 runs takes seconds so.
    """

    def __init__(self):
        self.conf = config.bundled("conf")
        self.parser = OverridesParser.create()
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.parsed: dict[str, Override] = {}

    def __call__(self, overrides: list[str]) -> DictConfig:
        new = [text for text in overrides if text not in self.parsed]
        self.parsed |= zip(new, self.parser.parse_overrides(new), strict=True)
        parsed = [self.parsed[text] for text in overrides]
        chooses = [not o.is_sweep_override() and (self.conf / o.get_key_element()).is_dir() for o in parsed]
        groups = tuple(text for text, group in zip(overrides, chooses, strict=True) if group)
        if groups not in self.composed:
            with initialize_config_dir(str(self.conf), version_base="1.3"):
                self.composed[groups] = compose("config", overrides=list(groups))
        cfg = copy.deepcopy(self.composed[groups])
        values = [o for o, group in zip(parsed, chooses, strict=True) if not group]
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        return cfg
