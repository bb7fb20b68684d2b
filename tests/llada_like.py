"""A folder as LLaDA's on Hugging Face: its own code, a mask inside the vocabulary, a tokenizer; small and random.

The code is written as LLaDA's is, for transformers 4: it never calls `post_init`, and its `tie_weights` takes
nothing.
"""

import json

import torch

MASK, VOCAB, LONGEST = 9, 24, 48

CONFIGURATION = """
from transformers import PretrainedConfig


class LLaDAConfig(PretrainedConfig):
    model_type = "llada"

    def __init__(self, **given):
        defaults = dict(d_model=24, n_layers=2, n_heads=2, vocab_size=24, max_sequence_length=48)
        super().__init__(**{"use_cache": False, "weight_tying": False, **defaults, **given})
"""

MODELING = """
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_llada import LLaDAConfig


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, d = config.n_heads, config.d_model
        self.causal = getattr(config, "causal", False)
        self.norm, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.up(x)))


class LLaDAModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        parts = dict(
            wte=nn.Embedding(config.vocab_size, config.d_model),
            wpe=nn.Embedding(config.max_sequence_length, config.d_model),
            blocks=nn.ModuleList([Block(config) for _ in range(config.n_layers)]),
            ff_out=nn.Linear(config.d_model, config.vocab_size, bias=False),
        )
        self.transformer = nn.ModuleDict(parts)

    def forward(self, ids):
        parts = self.transformer
        x = parts.wte(ids) + parts.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in parts.blocks:
            x = block(x)
        return parts.ff_out(x)


class LLaDAModelLM(PreTrainedModel):
    config_class = LLaDAConfig
    base_model_prefix = "model"

    def __init__(self, config, model=None, init_params=False):
        super().__init__(config)
        self.model = model or LLaDAModel(config)

    def forward(self, input_ids=None, attention_mask=None, return_dict=None):
        return CausalLMOutputWithPast(logits=self.model(input_ids))

    def get_input_embeddings(self):
        return self.model.transformer.wte

    def get_output_embeddings(self):
        return self.model.transformer.ff_out

    def tie_weights(self):
        if self.config.weight_tying:
            self.model.transformer.ff_out = self.model.transformer.wte
"""

CHAT = "{% for m in messages %}q {{ m.content }} a {% endfor %}"


def write(folder, chat=True, **config):
    """A folder in the layout of LLaDA's; returns the weights that were saved."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    (folder / "configuration_llada.py").write_text(CONFIGURATION)
    (folder / "modeling_llada.py").write_text(MODELING)
    names = {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"}
    written = {"model_type": "llada", "auto_map": names, "vocab_size": VOCAB, "mask_token_id": MASK, **config}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in written.items() if v is not None}))
    kind = get_class_from_dynamic_module(names["AutoModel"], str(folder))
    model = kind(kind.config_class(**config))
    weights = {}
    generator = torch.Generator().manual_seed(4)
    for name, value in model.state_dict().items():
        weights[name] = 0.25 * torch.randn(value.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    words = {"<|mdm_mask|>": MASK, "<|eos|>": VOCAB - 1, "q": 0, "a": 1}
    letters = (id for id in range(2, VOCAB - 1) if id != MASK)
    words |= {chr(ord("b") + i): id for i, id in enumerate(letters)}
    core = Tokenizer(models.WordLevel(words, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, mask_token="<|mdm_mask|>", eos_token="<|eos|>")
    tokenizer.chat_template = CHAT if chat else None
    tokenizer.save_pretrained(folder)
    return weights


def low_confidence(model, prompt, gen_length, block_length, steps, cfg_scale=0.0):
    """LLaDA's generate() with temperature 0, as its paper and code say, for one prompt [1, l]; the one difference
    is that the mask cannot be predicted. Returns the sequence and what the model was given."""
    length = prompt.shape[1]
    x = torch.cat([prompt, torch.full((1, gen_length), MASK)], 1)
    asked = []
    for start in range(length, length + gen_length, block_length):
        count = steps * block_length // gen_length
        for step in range(count):
            asked.append(x.clone())
            logits = model(x).logits.double()
            if cfg_scale:
                blind = x.clone()
                blind[:, :length] = MASK
                other = model(blind).logits.double()
                logits = other + (cfg_scale + 1) * (logits - other)
            logits[..., MASK] = -torch.inf
            best, value = logits.softmax(-1).max(-1)
            best[x != MASK] = -1
            best[:, start + block_length :] = -1
            here = int((x[:, start : start + block_length] == MASK).sum())
            kept = best[0].topk(here // (count - step)).indices
            x[0, kept] = value[0, kept]
    return x, asked
