"""Masked diffusion models of Hugging Face: LLaDA's interface, its own decoding rule, blocks, the command line."""

import importlib.util

import pytest
import torch
from llada_like import LONGEST, MASK, VOCAB, low_confidence, write
from sampler_laws import seeded

from dlm import sampling
from dlm.errors import UserError
from dlm.llada import __main__ as command
from dlm.llada.generate import in_blocks
from dlm.llada.model import INSTALL, MaskPredictor, load, mask_of, masked_process

pytest.importorskip("transformers")
PROCESS = masked_process(VOCAB, MASK)
POLICIES = ["random", "left_to_right", "top_probability", "margin", "log_ratio", "entropy"]


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """Where transformers keeps copies of the code that models bring."""
    from transformers.utils import logging

    copies = str(tmp_path_factory.mktemp("modules"))
    logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", copies)
        yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folder(modules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder))[0]


def prompted(rows=1, prompt=5, length=29):
    """Random prompts [rows, length], of which all behind `prompt` is free."""
    given = torch.randint(MASK, (rows, length), generator=seeded(1))
    return given, (torch.arange(length) >= prompt).expand(rows, -1)


# --- the model ---------------------------------------------------------------------------------------------------


def test_a_folder_is_loaded_with_its_weights_and_tokens(tmp_path):
    """Every saved tensor is found in the model, its answer is no accident of initialisation, the mask is that of
    config.json, or else of the tokenizer."""
    weights = write(tmp_path)
    model, tokenizer = load(str(tmp_path))
    state = model.state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)
    assert not model.training and mask_of(model, tokenizer) == MASK
    assert tokenizer.decode(tokenizer.encode("q b c", add_special_tokens=False)) == "q b c"
    model.config.mask_token_id = None
    assert mask_of(model, tokenizer) == MASK
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="mask_id="):
        mask_of(model, tokenizer)


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    write(tmp_path, causal=True)
    with pytest.raises(UserError, match="left to right only"):
        load(str(tmp_path))
    write(tmp_path, auto_map=None, model_type="bert")
    with pytest.raises(UserError, match="no auto_map"):
        load(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config.json"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="dtype"):
        load(str(tmp_path), dtype="float8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        load(str(tmp_path))
    assert str(error.value) == INSTALL and "dlm[llada]" in INSTALL


def test_the_mask_is_a_token_that_is_never_predicted(model):
    """Other ids keep their logits, at the asked positions only; the process masks with that id, and the state
    behind the vocabulary is never entered."""
    given, free = prompted(rows=3)
    x = torch.where(free, MASK, given)
    where = free & (torch.arange(29) % 3 == 0)
    with torch.no_grad():
        logits, all_of_them = MaskPredictor(model, MASK)(x, None, where), model(x).logits[where]
    assert (logits[:, MASK] == -torch.inf).all()
    others = torch.arange(VOCAB) != MASK
    assert torch.equal(logits[:, others], all_of_them[:, others])
    assert PROCESS.mask_id == MASK and (PROCESS.prior(torch.zeros(2, 2)) == MASK).all()
    for outside in (-1, VOCAB):
        with pytest.raises(UserError, match="none of the model's 24 tokens"):
            masked_process(VOCAB, outside)


# --- decoding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize(("block_length", "steps"), [(24, 24), (24, 6), (8, 12), (4, 6), (1, 24)])
def test_greedy_decoding_is_lladas_own(model, block_length, steps, guidance):
    """The same tokens as a plain loop of LLaDA's rule, 24 tokens in 1 to 24 blocks of several tokens a step, and
    the model is given the very same sequences on the way; with classifier-free guidance as well."""
    given, free = prompted()
    wanted, states = low_confidence(model, given[:, :5], 24, block_length, steps, guidance)
    denoise, asked = MaskPredictor(model, MASK, guidance, ~free[0]), []

    def seen(x, t, where):
        asked.append(x.clone())
        return denoise(x, t, where)

    for options in ({"policy": "top_probability"}, {"selection": "value"}):
        asked.clear()
        options = {"block_length": block_length, "steps": steps, "warp": sampling.greedy, **options}
        sample = in_blocks(PROCESS, seen, given, free, seeded(), **options)
        assert torch.equal(sample.x, wanted) and sample.evaluations.tolist() == [steps]
        assert len(asked) == len(states) and all(torch.equal(a, b) for a, b in zip(asked, states, strict=True))
    assert denoise.passes == (2 if guidance else 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_decodes_block_after_block(model, policy):
    """Three rows, a gap of 12 between given tokens, blocks of 4, two tokens a step: given tokens stay, nothing
    else is a mask, every block is finished before the next begins, and its steps count on."""
    given, free = prompted(rows=3)
    free = free & (torch.arange(29) < 17)
    noise = {} if policy in ("random", "left_to_right") else {"noise": "gumbel", "noise_scale": 0.5}
    options = {"block_length": 4, "per_step": 2, "policy": policy, **noise}
    sample = in_blocks(PROCESS, MaskPredictor(model, MASK), given, free, seeded(), **options)
    assert torch.equal(sample.x[~free], given[~free])
    assert (sample.x[free] != MASK).all() and (sample.x < VOCAB).all()
    assert (sample.fixed_at[free].reshape(3, 3, 4) // 2 == torch.arange(3)[:, None]).all()
    assert sample.evaluations.tolist() == [6] * 3 and sample.ties.tolist() == [0] * 3
    again = in_blocks(PROCESS, MaskPredictor(model, MASK), given, free, seeded(), **options)
    other = in_blocks(PROCESS, MaskPredictor(model, MASK), given, free, seeded(1), **options)
    assert torch.equal(sample.x, again.x) and not torch.equal(sample.x, other.x)


def test_blocks_have_noise_of_their_own():
    """A network that knows nothing: the orders within two blocks of a row agree as often as chance has it, in 1/24
    of 4000 rows (5 standard errors)."""

    def nothing(x, t, where):
        return torch.zeros(int(where.sum()), VOCAB).index_fill(1, torch.tensor([MASK]), -torch.inf)

    given = torch.zeros(4000, 8, dtype=torch.long)
    sample = in_blocks(PROCESS, nothing, given, given == 0, seeded(), 4, policy="random")
    first, second = (sample.fixed_at - torch.tensor([0] * 4 + [4] * 4)).split(4, dim=1)
    agree = float((first == second).all(1).double().mean())
    assert abs(agree - 1 / 24) < 5 * (1 / 24 * 23 / 24 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"block_length": 7}, "block_length=7 does not divide the 24 tokens"),
        ({"block_length": 0}, "block_length=0"),
        ({"block_length": 8, "steps": 7}, "steps=7 cannot be shared equally by 3 blocks of 8"),
        ({"block_length": 8, "steps": 48}, "steps=48 is more than the 24 tokens"),
        ({"steps": 4, "per_step": 2}, "contradict"),
        ({"policy": "wisest"}, "wisest"),
    ],
    ids=str,
)
def test_blocks_that_do_not_fit(model, options, said):
    with pytest.raises(UserError, match=said):
        in_blocks(PROCESS, MaskPredictor(model, MASK), *prompted(), seeded(), **options)


def test_rows_of_different_length_and_guidance_without_a_prompt(model):
    given, free = prompted(rows=2)
    free = free & (torch.arange(29) < torch.tensor([[20], [29]]))
    with pytest.raises(UserError, match="same number"):
        in_blocks(PROCESS, MaskPredictor(model, MASK), given, free, seeded())
    with pytest.raises(UserError, match="guidance=2"):
        MaskPredictor(model, MASK, 2.0)


# --- the command line ----------------------------------------------------------------------------------------


def test_the_command_continues_fills_in_and_answers(folder, called):
    def run(*arguments):
        return called(command.main, f"model={folder}", *arguments).splitlines()

    out = run("--prompt", "q b c d", "gen_length=16", "block_length=8", "steps=8")
    assert out[0] == "--- 16 tokens, 8 network evaluations, 2 tokens per step"
    assert len(out) == 2 and out == run("prompt=q b c d", "gen_length=16", "block_length=8", "steps=8", "seed=3")
    out = run("--prompt", "q b [MASK:6] c d", "policy=margin", "per_step=4", "n=3", "values=sampled")
    assert out[0] == out[2] == out[4] == "--- 6 tokens, 2 network evaluations, 3 tokens per step"
    assert all(text.startswith("q b ") and text.endswith(" c d") for text in out[1::2]) and out[1] != out[3]
    plain = run("--prompt", "q b c a", "gen_length=4", "guidance=1")
    assert plain[0] == "--- 4 tokens, 8 network evaluations, 1 tokens per step"
    assert plain[1:] == run("--prompt", "b c", "gen_length=4", "guidance=1", "chat=true")[1:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which model"),
        (["--prompt", "q", "n=0"], "n must be"),
        (["--prompt", "q", "gen_length=0"], "gen_length=0"),
        (["--prompt", "q", f"gen_length={LONGEST}"], "fills 49 of the model's 48 tokens"),
        (["--prompt", "q [MASK:2]", "chat=true"], "gaps"),
        (["--prompt", "q <|mdm_mask|> b"], "mask token"),
        (["--prompt", "q", "mask_id=24"], "mask_id=24"),
        (["--prompt", "q", "policy=given"], "policy=given"),
        (["--prompt", "q", "values=greedy", "temperature=0.5"], "values=greedy"),
        (["--prompt", "q", "block_length=7"], "block_length=7"),
        (["--prompt", "q", "guide=1"], "guide=1"),
    ],
    ids=str,
)
def test_the_command_refuses(folder, arguments, said, refused):
    assert said in refused(command.main, f"model={folder}", "gen_length=8", *arguments)


def test_the_command_names_what_is_missing(tmp_path, refused):
    assert "which model" in refused(command.main, "--prompt", "q")
    assert "no config.json" in refused(command.main, f"model={tmp_path}", "--prompt", "q")
    if not torch.cuda.is_available():
        assert "no GPU" in refused(command.main, f"model={tmp_path}", "--prompt", "q", "device=cuda")
    write(tmp_path, chat=False)
    assert "no chat format" in refused(command.main, f"model={tmp_path}", "--prompt", "q", "chat=true")
