"""A masked diffusion model with LLaDA's interface, as a network that this suite's samplers can ask.

LLaDA (Nie et al. 2025; GSAI-ML/LLaDA-8B-Base and -Instruct) is a Hugging Face repository that brings its own code:
`model(input_ids).logits` are those of a Transformer that reads both directions, at every position for the token
*there* (nothing is shifted), and one of the vocabulary's own tokens, `config.mask_token_id` = 126336, is the mask.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.errors import UserError
from dlm.process import MaskedDiffusion

INSTALL = "models of Hugging Face are read by transformers, which is not installed: pip install 'dlm[llada]'"


def masked_process(vocab_size: int, mask_id: int) -> MaskedDiffusion:
    """Masked diffusion whose mask is one of the vocabulary's V tokens, which keep their ids.

    The state V, where this suite's own models have their mask, never occurs.

    Raises:
        UserError: for a mask outside the vocabulary.
    """
    if not 0 <= mask_id < vocab_size:
        raise UserError(f"mask_id={mask_id} is none of the model's {vocab_size} tokens")
    process = MaskedDiffusion(vocab_size)
    process.mask_id = mask_id
    return process


class MaskPredictor:
    """The logits of a Hugging Face model as a `Denoise`: over all V ids, of which the mask is never predicted.

    Attributes:
        guidance: w of classifier-free guidance (LLaDA's cfg_scale): l_0 + (1 + w) (l - l_0) with l_0 the logits
            without the prompt, which is masked; 0 for none. Asks the model twice.
        prompt: the positions to be masked for l_0, the same in every row.
    """

    def __init__(self, model: Any, mask_id: int, guidance: float = 0.0, prompt: Bool[Tensor, " L"] | None = None):
        if guidance and (prompt is None or not prompt.any()):
            raise UserError(f"guidance={guidance} compares with the answer to no prompt: it needs a prompt")
        self.model, self.mask_id, self.guidance, self.prompt = model, mask_id, guidance, prompt

    @property
    def passes(self) -> int:
        """How often the model is asked for one evaluation."""
        return 2 if self.guidance else 1

    def __call__(
        self, x: Int[Tensor, "B L"], t: Float[Tensor, " B"] | None, where: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "N V"]:
        """Logits at the positions `where`; LLaDA is not told the time t."""
        logits = self.model(input_ids=x).logits[where]
        if self.guidance and self.prompt is not None:
            alone = self.model(input_ids=x.masked_fill(self.prompt, self.mask_id)).logits[where]
            logits = alone + (1 + self.guidance) * (logits - alone)
        return logits.index_fill(-1, torch.tensor([self.mask_id], device=logits.device), -torch.inf)


def load(name: str, revision: str | None = None, device: str = "cpu", dtype: str = "auto") -> tuple[Any, Any]:
    """The model, ready to be asked, and its tokenizer; `name` is a folder or an id on Hugging Face.

    This runs the Python files of the repository, as `trust_remote_code=True` does everywhere.

    Args:
        dtype: float32, bfloat16, or auto: bfloat16 on a GPU.

    Raises:
        UserError: without transformers, or for a name that cannot be loaded or holds another kind of model.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError(INSTALL)
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"dtype is auto, float32 or bfloat16, not {dtype!r}")
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"{name} holds no config.json: it is no model of Hugging Face")
    from transformers import AutoConfig, AutoTokenizer  # pyright: ignore[reportMissingImports]
    from transformers.dynamic_module_utils import get_class_from_dynamic_module  # pyright: ignore

    where = {"revision": revision, "trust_remote_code": True}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        code = (getattr(config, "auto_map", None) or {}).get("AutoModel")
        if code is None:
            raise UserError(f"{name} has no auto_map for AutoModel in its config.json: it is no model like LLaDA")
        kind = current(get_class_from_dynamic_module(code, name, revision=revision))
        model = kind.from_pretrained(name, config=config, dtype=getattr(torch, dtype), **where)
        tokenizer = AutoTokenizer.from_pretrained(name, **where)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot load {name}: {str(error).splitlines()[0]}") from error
    model = model.to(device).eval()
    require_both_directions(model, name)
    return model, tokenizer


def current(kind: type) -> type:
    """A model class as transformers 5 needs it, for LLaDA's code was written for transformers 4.

    It never calls `post_init`, which now makes the (here empty) list of tied weights, and its `tie_weights` takes
    none of the arguments that it is now called with.
    """

    class Current(kind):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            if not hasattr(self, "all_tied_weights_keys"):
                self.all_tied_weights_keys: dict[str, str] = {}

        def tie_weights(self, *args: Any, **kwargs: Any) -> None:
            if "tie_weights" in vars(kind):
                super().tie_weights()
            else:
                super().tie_weights(*args, **kwargs)

    Current.__name__, Current.__qualname__, Current.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return Current


@torch.no_grad()
def require_both_directions(model: Any, name: str) -> None:
    """Raises UserError if the first of two tokens does not notice the second, or nothing comes out."""
    pairs = torch.tensor([[0, 1], [0, 2]], device=model.device)
    answer = getattr(model(input_ids=pairs), "logits", None)
    if answer is None:
        raise UserError(f"{name} answers without logits: it is no language model")
    if torch.equal(answer[0, 0], answer[1, 0]):
        raise UserError(f"{name} reads from left to right only: it is no masked diffusion model")


def mask_of(model: Any, tokenizer: Any) -> int:
    """The id of the mask, of the model's configuration or its tokenizer.

    Raises:
        UserError: where neither names one.
    """
    for source in (model.config, tokenizer):
        if getattr(source, "mask_token_id", None) is not None:
            return int(source.mask_token_id)
    raise UserError("neither the model's config.json nor its tokenizer names a mask token: give mask_id=")
