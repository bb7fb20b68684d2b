"""Every YAML composes, instantiates and trains; every method is the same size; names are stable."""

import copy
import math

import hydra
import pytest
import torch
from conftest import METHODS, ROOT, TOY, composed
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from dlm import config, train
from dlm.lm import LanguageModel
from dlm.process import GenMaskedDiffusion
from dlm.run import RunDirectory

BACKBONES = {path.stem: path for path in sorted((ROOT / "conf" / "backbone").glob("*.yaml"))}


def names(group):
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


METHOD_CONFIGS = {method: composed(f"method={method}", "vocab_size=97") for method in METHODS}


def built(method, backbone="tiny"):
    """A method on a backbone, without memory for its weights."""
    cfg = copy.deepcopy(METHOD_CONFIGS[method])
    cfg.backbone.merge_with(OmegaConf.load(BACKBONES[backbone]))
    with torch.device("meta"):
        return train.build_model(cfg, "none", total_steps=1)


# --- composing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["data", "backbone", "trainer", "logger"])
def test_every_group_composes(group):
    launchers = {"cluster": "hydra-submitit-launcher"}
    for name in names(group):
        if group == "trainer" and name in launchers:
            continue  # tested below: its launcher is an optional dependency
        cfg = composed(f"{group}={name}")
        cfg.vocab_size = 97
        OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        file = OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml")
        own = file.get(group, file)  # of a file that sets more than its group
        for key in own:
            if key == "defaults":
                continue
            if group != "trainer" or key in cfg.trainer:
                assert OmegaConf.select(cfg, f"{group}.{key}") is not None or own[key] is None, (name, key)


def test_the_cluster_is_configured_or_says_what_is_missing():
    """Where the optional submitit launcher is not installed, composing names it."""
    Plugins.instance()
    try:
        import hydra_plugins.hydra_submitit_launcher  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(ConfigCompositionException, match="submitit_slurm"):
            composed("trainer=cluster")
    else:
        cfg = composed("trainer=cluster")
        assert cfg.trainer.num_nodes > 1 and cfg.trainer.strategy == "ddp"


def test_data_of_every_yaml_instantiates(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(f"paragraph {i}: " + "lorem ipsum dolor sit amet " * (1 + i % 7) for i in range(99))
    )
    wanted = {"toy": [], "nae_sat": [], "pydoc": [f"data.cache_dir={tmp_path}"]}
    wanted["sudoku"] = [f"data.{k}" for k in ("size=4", "sequences=50", "held_out=9", f"cache_dir={tmp_path}")]
    wanted["zebra"] = [f"data.{k}" for k in ("houses=3", "attributes=3", "sequences=50", "held_out=9")]
    wanted["zebra"].append(f"data.cache_dir={tmp_path}")
    wanted["file"] = [f"data.path={text}", f"data.cache_dir={tmp_path}", "seq_len=32"]
    elsewhere = {"stdlib", "stdlib_bytes", "c4", "fineweb_edu", "tinystories"}  # slow, or in test_hub.py
    assert {*wanted, *elsewhere} == set(names("data")), "a new data YAML needs a line here"
    for name, overrides in wanted.items():
        data = train.build_data(composed(f"data={name}", *overrides))
        assert len(data.windows("report", 1)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_builds(method):
    model = built(method)
    assert isinstance(model, LanguageModel)
    assert model.bound_kind and model.samplers


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_the_size_it_claims(backbone):
    """The comment on its first line: "20M: ...", "300M without embeddings: ..."; to 15 %."""
    claim = BACKBONES[backbone].read_text().split()[1].rstrip(":")
    millions = float(claim.removesuffix("M"))
    model = built("md4", backbone).backbone
    embedding = sum(p.numel() for n, p in model.named_parameters() if n.startswith(("embed", "head")))
    total = sum(p.numel() for p in model.parameters())
    bare = "without embeddings" in BACKBONES[backbone].read_text()
    assert math.isclose((total - embedding if bare else total) / 1e6, millions, rel_tol=0.15)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_methods_are_equally_large(backbone):
    """The same network to 1 %, apart from what tells it the time and GenMD4's one weight per token."""
    sizes = {}
    for method in METHODS:
        model = built(method, backbone)
        process = getattr(model, "process", None)
        own = process.schedule.raw.numel() if isinstance(process, GenMaskedDiffusion) else 0
        assert own == (97 if method.startswith("genmd4") else 0)
        sizes[method] = sum(p.numel() for p in model.parameters()) - model.backbone.conditioning_parameters - own
    assert max(sizes.values()) <= 1.01 * min(sizes.values()), sizes


def test_a_time_dependent_process_is_told_the_time_and_only_it():
    for method in METHODS:
        model = built(method)
        told = model.backbone.conditioning_parameters > 0
        assert told == (hasattr(model, "process") and model.process.time_dependent), method


# --- refusing -----------------------------------------------------------------------------------------------


MISTYPED = [
    *("backbone.dmi=4", "optim.lrr=1", "trainer.device=2", "evaluation.draw=1", "sed=1", "logger.wandbb=true"),
    *("backbone.depth=deep", "optim.lr=fast", "seed=1.5", "epochs=many", "method=md5", "backbone=huge"),
    *("data=wikipedia", "trainer=tpu", "logger=paper"),
]


@pytest.mark.parametrize("override", MISTYPED)
def test_mistyped_keys_and_values_are_refused(override):
    with pytest.raises(config.CONFIG_ERRORS) as error:
        composed(override)
    said = config.one_line(error.value)
    assert override.split("=")[0].split(".")[-1] in said or override.split("=")[1] in said


@pytest.mark.parametrize("override", ["+method.process.scedule=1", "+data.pth=x", "data.unique_tokn=3"])
def test_keys_that_no_constructor_knows_are_refused(override):
    with pytest.raises((*config.CONFIG_ERRORS, train.UserError)) as error:
        cfg = composed(*TOY, override)
        train.build_model(cfg, train.build_data(cfg).source.fingerprint, total_steps=1)
    assert override.split("=")[0].split(".")[-1] in config.one_line(error.value)


# --- names --------------------------------------------------------------------------------------------------


def test_the_name_of_a_run_is_stable():
    """The same however the same settings are written: another name would orphan a finished run."""
    name = config.run_name(composed(*TOY, "method=md4"))
    assert name == config.run_name(composed(*reversed(TOY), "method=md4"))
    assert name.startswith("maskeddiffusion-s0-") and len(name.split("-")[-1]) == 8


WHERE = [
    *("trainer.devices=4", "trainer=gpu", "trainer.precision=32-true", "logger=wandb", "logger.project=x"),
    *("output_dir=/elsewhere", "study=other", "scale=other", "trainer.num_workers=2", "trainer.accumulate=2"),
]


@pytest.mark.parametrize("where", WHERE)
def test_where_a_run_happens_is_no_part_of_its_name(where):
    overrides = ["data=toy", "method=md4"]
    assert config.run_name(composed(*overrides, where)) == config.run_name(composed(*overrides))


WHAT = [
    *("optim.lr=1e-3", "seed=1", "data.unique_tokens=1024", "backbone.dropout=0.1", "epochs=11", "method=arm"),
    *("batch_size=8", "evaluation.draws=4", "data.seed=1", "method.process.schedule._target_=x", "trainer=smoke"),
]


@pytest.mark.parametrize("what", WHAT)
def test_what_decides_the_numbers_is_part_of_the_name(what):
    base = ["data=toy", "method=md4", "seq_len=32"]
    assert config.run_name(composed(*base, what)) != config.run_name(composed(*base))


def test_the_cache_folder_is_no_part_of_the_name():
    one, other = (config.run_name(composed("data=pydoc", f"data.cache_dir={c}")) for c in ("a", "b"))
    assert one == other


def test_cell_and_arm_lead_the_name():
    cfg = composed(*TOY, "method=md4", "cell=scarce", "arm=md4-x", "study=s", "scale=t", "output_dir=o")
    assert config.run_name(cfg).startswith("scarce-md4-x-s0-")
    assert config.run_path(cfg).as_posix() == f"o/s/t/runs/{config.run_name(cfg)}"


# --- training -----------------------------------------------------------------------------------------------


def numbers(tree):
    if isinstance(tree, dict):
        return [n for value in tree.values() for n in numbers(value)]
    return [tree] if isinstance(tree, (int, float)) else []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_two_steps_from_its_yaml(method, tmp_path):
    """Batch to loss to record, through the real entry point."""
    toy = [override for override in TOY if not override.startswith(("steps", "evaluation"))]
    path = train.train(composed(*toy, f"method={method}", "trainer=smoke", f"output_dir={tmp_path}"))
    record = RunDirectory(path).read_record()
    blocks = [*record["likelihood"].values(), *record["likelihood"]["extra"].values()]
    scores = [block for block in blocks if block and "kind" in block]
    assert record["steps"] == 2 and record["targets"] > 0 and len(record["samples"]) == 1
    assert all(math.isfinite(n) for n in numbers(record))
    assert all(s["kind"].startswith(("exact", "bound (")) and s["nats_per_token"] > 0 for s in scores)
    kind = "exact" if record["bound_kind"] == "exact" else f"bound ({record['bound_kind']})"
    assert record["likelihood"]["bound"]["kind"] == kind
    assert len(record["samples"][0].split()) == 8 and set(record["samples"][0].split()) <= set("0123")
    resolved = RunDirectory(path).read_config()
    assert resolved["vocab_size"] == 4 and hydra.utils.instantiate(resolved["backbone"]).vocab_size == 4


def test_a_learned_schedule_is_trained_without_weight_decay():
    """`raw` gets a gradient, and decay would pull its w towards log 2."""
    cfg = composed(*TOY, "method=genmd4")
    data = train.build_data(cfg)
    model = train.build_model(cfg, "none", total_steps=1)
    raw = model.process.schedule.raw
    optimizer = model.configure_optimizers()["optimizer"]
    (group,) = [g for g in optimizer.param_groups if any(p is raw for p in g["params"])]
    assert group["weight_decay"] == 0.0
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.1}
    data.trainer = None
    batch = next(iter(data.train_dataloader()))
    model.training_step(batch, 0)["loss"].backward()
    assert raw.grad is not None and raw.grad.isfinite().all() and (raw.grad != 0).any()
    before = raw.detach().clone()
    optimizer.step()
    assert (raw != before).any()


def test_matrices_decay_and_nothing_else_does():
    for method in METHODS:
        model = built(method)
        optimizer = model.optim.optimizer(model)
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
        for group in optimizer.param_groups:
            assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])
