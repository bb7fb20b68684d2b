"""lm-evaluation-harness on the suite's models: scores against the definition, and tasks of small local files."""

import importlib.util
import json
import math
import random

import pytest
import torch
from conftest import TOY, composed, rows
from measured_models import LETTERS, Given

from dlm import train
from dlm.augment import Permutation
from dlm.backbone import Transformer
from dlm.errors import UserError
from dlm.evaluate import load_run
from dlm.harness import __main__ as command
from dlm.harness.scorer import TextScorer
from dlm.lm import AutoregressiveLM, MaskedDiffusionLM, UniformDiffusionLM
from dlm.process import MaskedDiffusion, UniformDiffusion

L, V = 12, len(LETTERS)
SOURCE = Given(L, "ab" * 50)


def model_of(kind):
    """Random weights that are far from uniform."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "max_len": L, "dim": 16, "depth": 1, "heads": 2}
    if kind == "arm":
        model = AutoregressiveLM(Transformer(**shape, causal=True))
    elif kind == "md4":
        model = MaskedDiffusionLM(MaskedDiffusion(V), Transformer(**shape))
    else:
        model = UniformDiffusionLM(UniformDiffusion(V), Transformer(**shape, time="additive"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


ARM, MD4, SHUFFLE = model_of("arm"), model_of("md4"), model_of("shuffle")
PERMUTED = AutoregressiveLM(Transformer(V, L, dim=16, depth=1, heads=2, causal=True), permutation=Permutation())
PAIRS = [("abc", "de"), ("", "hello"), ("abcdefghij", "klmn"), ("x", "y")]


def logits_at(model, ids, place):
    """Of one position, causally or with masks from there on (and behind the text)."""
    where = torch.zeros(1, len(ids), dtype=torch.bool)
    where[0, place] = True
    x = torch.tensor([ids])
    if model is ARM:
        x = torch.cat([torch.tensor([[V]]), x[:, :-1]], 1)
        return model.backbone(x, None, where)[0].detach()
    return model.backbone(x, None, where)[0].detach()


def chain_rule(model, context, continuation, tail):
    """log p of the continuation, token by token, from the definition."""
    whole = SOURCE.encode(context + continuation)[-L:]
    total = 0.0
    for place in range(len(whole) - len(continuation), len(whole)):
        ids = whole if model is ARM else whole[:place] + [V] * ((L if tail == "masked" else len(whole)) - place)
        total += logits_at(model, ids, place).double().log_softmax(-1)[whole[place]].item()
    return total


def nats(scorer, pairs=PAIRS, index=None):
    return scorer.nats([scorer.encode(*pair) for pair in pairs], index or list(range(len(pairs))))


# --- scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, tail", [(ARM, "none"), (MD4, "masked"), (MD4, "none")], ids=lambda v: str(v)[:7])
def test_the_chain_rule_is_the_definition(model, tail):
    scorer = TextScorer(model, SOURCE, "left_to_right", tail=tail, rows=3)
    expected = [-chain_rule(model, *pair, tail) for pair in PAIRS]
    assert nats(scorer) == pytest.approx(expected, abs=1e-4)


def test_the_bound_of_two_tokens_is_the_mean_over_both_orders():
    context, (a, b) = "abc", "de"
    expected = 0.0
    for first, second in ((0, 1), (1, 0)):
        ids = SOURCE.encode(context + a + b) + [V] * (L - 5)
        for hidden, place in (((0, 1), first), ((second,), second)):
            seen = [V if i - 3 in hidden else token for i, token in enumerate(ids)]
            law = logits_at(MD4, seen, 3 + place).double().log_softmax(-1)
            expected -= law[ids[3 + place]].item() / 2
    drawn = [nats(TextScorer(MD4, SOURCE, draws=64), [(context, a + b)], [i])[0] for i in range(40)]
    mean, se = torch.tensor(drawn).mean().item(), torch.tensor(drawn).std().item() / math.sqrt(len(drawn))
    assert abs(mean - expected) < 4 * se + 1e-4, f"{mean} ± {se}, exactly {expected}; 40 addresses of 64 draws"


@pytest.mark.parametrize("model", [ARM, MD4, SHUFFLE], ids=["arm", "md4", "shuffle"])
def test_a_score_does_not_depend_on_its_company(model):
    together = nats(TextScorer(model, SOURCE, draws=4, rows=8))
    alone = [nats(TextScorer(model, SOURCE, draws=4, rows=8), [pair], [i])[0] for i, pair in enumerate(PAIRS)]
    assert together == pytest.approx(alone, abs=1e-4)


def test_options_of_one_document_share_their_noise():
    scorer = TextScorer(MD4, SOURCE, draws=3)
    same = nats(scorer, [("abc", "def"), ("abc", "def")], [7, 7])
    other = nats(scorer, [("abc", "def")], [8])
    assert same[0] == pytest.approx(same[1], abs=1e-5) and abs(same[0] - other[0]) > 1e-3


def test_long_texts_are_scored_token_by_token_with_as_much_before_as_fits():
    scorer = TextScorer(ARM, SOURCE)
    text = "abcdefghijklmnopqrstuvwxyz"
    pieces = list(scorer.pieces([], SOURCE.encode(text), 0, 5))
    assert [(len(p.ids), p.scored) for p in pieces] == [(12, 12), (12, 12), (12, 2)]
    assert "".join(SOURCE.decode(p.ids[-p.scored :]) for p in pieces) == text
    expected = -(chain_rule(ARM, "", text[:12], 0) + chain_rule(ARM, "", text[12:24], 0))
    expected -= chain_rule(ARM, text[14:24], text[24:], 0)
    assert nats(scorer, [("", text)]) == pytest.approx([expected], abs=1e-4)
    assert scorer.nats([([1, 2], [])], [0]) == [0.0]


def test_tokens_are_divided_where_the_texts_meet():
    class Spaced(Given):
        def encode(self, text):  # a space belongs to the letter after it, as in byte-pair vocabularies
            return super().encode(text.replace(" ", ""))

    scorer = TextScorer(ARM, Spaced(L, "ab" * 50))
    assert scorer.encode("ab ", "cd") == ([0, 1], [2, 3])
    assert scorer.encode("", "cd") == ([], [2, 3])


@pytest.mark.parametrize("model", [ARM, MD4], ids=["arm", "md4"])
def test_the_likeliest_continuation_is_recognised(model):
    ids = SOURCE.encode("abcd")
    for place in range(4, 8):
        seen = [*ids, *[0] * (8 - place)] if model is ARM else [*ids, *[V] * (L - place)]
        ids = [*ids, int(logits_at(model, seen, place).argmax())]
    best = ids[4:]
    pairs = [(ids[:4], best)] + [(ids[:4], [*best[:i], (best[i] + 1) % V, *best[i + 1 :]]) for i in range(4)]
    for rows_at_once in (1, 64):
        found = TextScorer(model, SOURCE, rows=rows_at_once).is_likeliest(pairs)
        assert found == [True, False, False, False, False]
    if model is ARM:
        assert TextScorer(ARM, SOURCE).continued("abcd", 4) == SOURCE.decode(best)


def test_every_model_continues_and_none_without_masks_has_a_next_token():
    for model in (ARM, MD4, SHUFFLE):
        assert len(TextScorer(model, SOURCE).continued("abcdefghijkl", 5, temperature=1.0)) == 5
    assert TextScorer(SHUFFLE, SOURCE).is_likeliest([([1], [2])]) == [False]


def test_what_a_model_does_not_have_is_refused():
    for model, settings, word in (
        (ARM, {"likelihood": "exact_count"}, "left_to_right"),
        (MD4, {"likelihood": "order_variance"}, "has exact_count"),
        (MD4, {"tail": "long"}, "masked or none"),
        (MD4, {"likelihood": "continuous"}, "tail=none"),
        (PERMUTED, {}, "permuted text"),
    ):
        with pytest.raises(UserError, match=word):
            TextScorer(model, SOURCE, **settings)


# --- tasks --------------------------------------------------------------------------------------------------

CHOICES = [
    {"query": "the cat sat on the", "options": [" mat", " moon", " of"], "label": 0},
    {"query": "one and one are", "options": [" two", " seven", " it"], "label": 1},
    {"query": "a dog can", "options": [" bark", " fly", " the"], "label": 2},
    {"query": "grass is", "options": [" green", " loud", " if"], "label": 0},
]
COMMON = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {output_type}
"""
YAMLS = {
    "tiny_choice": """
doc_to_text: "{{query}}"
doc_to_choice: options
doc_to_target: label
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_last_word": """
doc_to_text: "{{query}}"
doc_to_target: "{{options[0]}}"
target_delimiter: ""
metric_list: [{metric: perplexity, aggregation: perplexity}, {metric: acc, aggregation: mean}]
""",
    "tiny_rolling": """
doc_to_text: ""
doc_to_target: "{{query}}"
metric_list: [{metric: word_perplexity}]
""",
    "tiny_written": """
doc_to_text: "{{query}}"
doc_to_target: "{{options[0]}}"
generation_kwargs: {until: [" "], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, CHOICES)))
    for (task, own), output_type in zip(YAMLS.items(), TYPES, strict=True):
        common = COMMON.format(task=task, file=folder / "test.jsonl", output_type=output_type)
        (folder / f"{task}.yaml").write_text(common + own)
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two steps on a text of characters: enough to have a run directory."""
    folder = tmp_path_factory.mktemp("runs")
    words, draw = [letter * 3 for letter in "abcdefgh"], random.Random(0)
    (folder / "text.txt").write_text("\n\n".join(" ".join(draw.choices(words, k=20)) for _ in range(99)))
    data = ["data=file", f"data.path={folder / 'text.txt'}", f"data.cache_dir={folder / 'cache'}", "seq_len=32"]
    toy = [word for word in TOY if not word.startswith(("data", "seq_len", "evaluation.windows"))]
    settings = [*toy, *data, f"output_dir={folder}", "steps=2", "evaluation.windows=2"]
    return {m: train.train(composed(*settings, f"method={m}")) for m in ("arm", "md4")}


@pytest.mark.parametrize("method", ["arm", "md4"])
def test_tasks_of_every_kind_are_scored_and_kept(method, runs, tasks, called):
    run, names = runs[method], list(YAMLS)
    arguments = (f"run={run}", f"tasks={','.join(names)}", f"include={tasks}", "draws=4")
    said = called(command.main, *arguments)
    assert all(name in said for name in names)
    found = {row["measure"]: row for row in rows(run, "measures.jsonl")}
    assert list(found) == [f"task:{name}" for name in names]
    model, data, _ = load_run(run)
    scorer = TextScorer(model, data.source, draws=4)
    right = []
    for i, doc in enumerate(CHOICES):
        options = nats(scorer, [(doc["query"], option) for option in doc["options"]], [i] * 3)
        right.append(options.index(min(options)) == doc["label"])
    choice = found["task:tiny_choice"]
    assert choice["value"] == pytest.approx(sum(right) / 4) and choice["n"] == 4
    assert choice["chance"] == pytest.approx(1 / 3) and choice["unit"] == "share"
    assert {"checkpoint", "epoch", "cooled", "split", "se", "details", "key"} <= choice.keys()
    words = sum(len(doc["query"].split()) for doc in CHOICES)
    total = sum(nats(scorer, [("", doc["query"]) for doc in CHOICES]))
    assert found["task:tiny_rolling"]["value"] == pytest.approx(math.exp(total / words), rel=1e-3)
    last = sum(nats(scorer, [(doc["query"], doc["options"][0]) for doc in CHOICES])) / 4
    details = found["task:tiny_last_word"]["details"]
    assert details["metric"] == "acc" and details["perplexity"] == pytest.approx(math.exp(last), rel=1e-3)
    assert 0 <= found["task:tiny_written"]["value"] <= 1

    assert called(command.main, *arguments) == said, "a second call reads what is there"
    assert len(rows(run, "measures.jsonl")) == len(names)
    called(command.main, *arguments[:1], "tasks=tiny_choice", f"include={tasks}", "draws=4", "limit=2")
    assert rows(run, "measures.jsonl")[-1]["n"] == 2, "other settings are another result"


def test_mistakes_are_one_line(runs, tasks, refused, monkeypatch):
    run = f"run={runs['md4']}"
    assert "which tasks" in refused(command.main, run)
    assert "no such task" in refused(command.main, run, "tasks=nonsense", f"include={tasks}")
    assert "not a folder" in refused(command.main, run, "tasks=tiny_choice", "include=nowhere")
    assert "draws=0" in refused(command.main, run, "tasks=tiny_choice", "draws=0")
    (tasks / "lost.yaml").write_text(
        COMMON.format(task="lost", file=tasks / "gone.jsonl", output_type="loglikelihood_rolling")
        + YAMLS["tiny_rolling"]
    )
    assert "documents of the task lost" in refused(command.main, run, "tasks=lost", f"include={tasks}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install" in refused(command.main, run, "tasks=tiny_choice")
