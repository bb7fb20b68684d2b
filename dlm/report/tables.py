"""The tables of any study: likelihoods, runs, protocol, data audit, samples, missing runs, provenance.

`results` is what a study's report computes and writes to results.json. Read here: `unit`; `labels`, by arm;
`best`, one entry per arm and cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from dlm.report.page import Listing, Prose, Table, chip, swatch
from dlm.report.study import Run, Study
from dlm.report.style import ink


def plus_minus(value: float, se: float, sign: str = "") -> str:
    """Value ± SE that will not break across lines."""
    return f"{value:{sign}.3f}\u00a0±\u00a0{se:.3f}".replace("-", "−")


def likelihood_table(results: dict[str, Any]) -> Table:
    """Best likelihoods in nats per token and bits per character, bound and left-to-right, with SE."""
    rows = []
    for b in results["best"]:
        bound, exact = b["bound"], b["left_to_right"]
        row = [b["cell"], swatch(ink(b["arm"]).colour, results["labels"][b["arm"]]), bound["kind"]]
        row += [
            plus_minus(bound["nats_per_token"], bound["se"]),
            plus_minus(bound["bits_per_char"], bound["se_bits"]),
        ]
        if exact and not b["exact"]:
            same = b["bound_same_windows"]
            row += [plus_minus(exact["nats_per_token"], exact["se"])]
            row += [plus_minus(same["nats_per_token"], same["se"]) if same else "–"]
        else:
            row += ["–", "–"]
        rows.append([*row, f"{b['epoch']:.3g}", b["seeds"]])
    head = ["<cell", "<arm", "<kind", results["unit"], "bits per character"]
    head += [f"left to right, {results['unit']}", "its bound, same windows", "best epoch", "seeds"]
    return Table(
        head,
        rows,
        "Checkpoint chosen on the tune split, measured on the report split; ± is the standard error over "
        "held-out windows (and over seeds where there are several). Left to right: the same network asked "
        "for one token after another, an exact likelihood in that order, often measured on fewer windows; the "
        "bound on those same windows stands beside it.",
    )


def extra_table(study: Study) -> list[Table]:
    """Further likelihoods that some records hold, by their own names."""
    rows = [
        [
            run.cell,
            swatch(ink(run.arm).colour, study.label(run.arm)),
            name,
            run.seed,
            plus_minus(score["nats_per_token"], score["se"]),
            plus_minus(score["bits_per_char"], score["se_bits"]),
        ]
        for run in study.compared
        for name, score in (run.record["likelihood"].get("extra") or {}).items()
    ]
    head = ["<cell", "<arm", "<measure", "seed", "nats per token", "bits per character"]
    return [Table(head, rows, folded="Further likelihoods")] if rows else []


def runs_table(study: Study, most: int = 60) -> Table:
    """T1: one row per planned run, folded if there are more than `most`; a missing one keeps its row."""
    rows = []
    for run in study.runs:
        head = [run.cell, swatch(ink(run.arm).colour, study.label(run.arm)), run.seed]
        if run.problem:
            rows.append([*head, *[""] * 10, chip("missing", "bad") + " " + (run.problem or "")])
            continue
        r = run.record
        sizes = [f"{r['params']:,}", f"{r['params_non_embedding']:,}", f"{r['epochs']:.4g}", f"{r['steps']:,}"]
        targets = run.evaluations[-1].get("targets")
        full = r.get("flops_full_attention")
        flops = [f"{r['flops']:.2e}", "–" if full is None else f"{full:.2e}"]
        work = [short(r["tokens"]), short(targets), *flops, clock(r["seconds"])]
        rows.append([*head, *sizes, *work, short(r["tokens_per_second"]), reason(run)])
    head = ["<cell", "<arm", "seed", "parameters", "non-embedding", "epochs", "steps", "tokens", "scored targets"]
    return Table(
        [*head, "FLOPs", "if fully attended", "time", "tokens/s", "<best epoch, early stop"],
        rows,
        "T1. All planned runs. Tokens, targets and FLOPs count the trunk's training only. A mask model scores "
        "only the masked part of what it sees, so equal tokens are not equal targets; a causal model attends to "
        "half as much, so its FLOPs are also given as if it attended to everything.",
        folded=f"T1. All {len(rows)} planned runs" if len(rows) > most else "",
    )


def reason(run: Run) -> str:
    stopped = run.record.get("stopped")
    return f"best at {run.record['best']['epoch']:.3g}" + (f"; {stopped}" if stopped else "")


def short(count: float | None) -> str:
    """12345678 -> 12.3M."""
    if count is None:
        return "–"
    for size, mark in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{mark}"
    return f"{count:.3g}"


def clock(seconds: float) -> str:
    """Seconds as 1 h 02 min, 3 min 20 s or 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def arms_table(study: Study) -> Table:
    rows = [
        [
            swatch(ink(a["arm"]).colour, a["label"]),
            "baseline" if a["baseline"] else "process",
            a.get("description", ""),
        ]
        for a in study.plan["arms"]
    ]
    return Table(["<arm", "<role", "<what it is"], rows)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {"a.b": value}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, sub in tree.items()
        for key, value in flat(sub, f"{prefix}.{name}".lstrip(".")).items()
    }


def protocol_tables(study: Study) -> list[Table]:
    """What all runs share, and what differs between arms, read off the resolved configurations: one of each arm in
    each cell, since its seeds differ in the seed alone."""
    seeds: dict[tuple[str, str], list[Run]] = {}
    for run in study.compared:
        seeds.setdefault((run.cell, run.arm), []).append(run)
    configs = {
        runs[0].name: flat(runs[0].config) | {"seed": " ".join(sorted({str(run.seed) for run in runs}))}
        for runs in seeds.values()
        if runs[0].config
    }
    if not configs:
        return [Table(["<setting", "<value"], [], "No run has a config.yaml.")]
    keys = sorted({key for config in configs.values() for key in config})
    values = {key: {name: config.get(key, "–") for name, config in configs.items()} for key in keys}
    shared = [key for key in keys if len({str(v) for v in values[key].values()}) == 1]
    arms = [a["arm"] for a in study.plan["arms"] if any(run.arm == a["arm"] for run in study.compared)]
    members = {arm: [run.name for run in study.compared if run.arm == arm and run.name in configs] for arm in arms}
    per_arm = {
        key: [", ".join(sorted({str(values[key][name]) for name in members[arm]})) for arm in arms]
        for key in keys
        if key not in shared
    }
    differing = [
        [Markup("<code>{}</code>").format(key), *row] for key, row in per_arm.items() if len(set(row)) > 1
    ]
    common = [[Markup("<code>{}</code>").format(key), next(iter(values[key].values()))] for key in shared]
    return [
        Table(
            ["<setting", *(f"<{study.label(arm)}" for arm in arms)],
            differing,
            "T1. Settings that differ between arms.",
        ),
        Table(["<setting", "<value"], common, folded=f"The {len(common)} settings that all runs share"),
    ]


def audit_table(study: Study) -> Table:
    """T9: the data audit of each cell, leak check included."""
    cells = {run.cell: flat(run.record.get("data", {}).get("audit", {})) for run in study.compared}
    keys = list(dict.fromkeys(key for audit in cells.values() for key in audit))
    rows = [[key.replace(".", ": ").replace("_", " "), *(cells[c].get(key, "–") for c in cells)] for key in keys]
    caption = "T9. Data and leak audit: the share of held-out windows found verbatim in the training text."
    return Table(["<audit", *cells], [[tidy(x) for x in row] for row in rows], caption)


def tidy(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


def samples(study: Study, most: int = 2) -> list[Any]:
    """A few samples per arm of each cell, the first cell open."""
    blocks: list[Any] = [Prose("Drawn from the chosen checkpoints, not selected.")]
    for i, cell in enumerate(study.plan["cells"]):
        for arm in study.plan["arms"]:
            runs = study.of(cell["cell"], arm["arm"])
            texts = [text for run in runs[:1] for text in (run.record.get("samples") or [])[:most]]
            if texts:
                divider = "\n" + "─" * 24 + "\n"
                blocks.append(Listing(f"{arm['label']}, {cell['cell']}", divider.join(texts), folded=i > 0))
    return blocks


def missing(study: Study) -> list[Any]:
    """The planned runs that could not be compared, and the directories that no plan knows."""
    blocks: list[Any] = []
    if study.missing:
        text = "\n".join(f"{run.name}: {run.problem}" for run in study.missing)
        blocks.append(Listing(f"Missing runs ({len(study.missing)} of {len(study.runs)})", text))
    else:
        blocks.append(Prose("No planned run is missing."))
    if study.plan.get("dropped"):
        text = "\n".join(
            f"{entry['run']}: about {clock(entry['predicted_seconds'])}" for entry in study.plan["dropped"]
        )
        blocks.append(Listing("Not run, to stay within the minutes asked for", text))
    if study.unplanned:
        blocks.append(Listing("Directories that are not in the plan, not read", "\n".join(study.unplanned)))
    return blocks


def provenance(study: Study) -> list[Any]:
    """Commands, versions, hardware, data, seeds and time."""
    plan, records = study.plan, [run.record for run in study.compared]

    def listed(values: Iterable[Any]) -> str:
        return "; ".join(dict.fromkeys(str(v) for v in values if v)) or "not recorded"

    seconds = plan.get("seconds") or {}
    took = ", ".join(f"{stage} {clock(s)}" for stage, s in seconds.items() if s is not None) or "not recorded"
    versions = listed(", ".join(f"{k} {v}" for k, v in (r.get("versions") or {}).items()) for r in records)
    hardware = listed([", ".join(f"{k}: {v}" for k, v in flat(plan.get("hardware") or {}).items())])
    facts = [
        ("command", Markup("<code>{}</code>").format(plan.get("command", "not recorded"))),
        ("this report again", Markup("<code>{}</code>").format(study.again)),
        ("started", plan.get("started", "not recorded")),
        ("time taken", took),
        ("budget", f"{plan.get('budget_minutes', '–')} minutes, {plan.get('workers', '–')} runs at once"),
        ("seeds", listed(sorted({str(run.seed) for run in study.runs}))),
        ("data fingerprint", Markup("<code>{}</code>").format(study.fingerprint or "not recorded")),
        ("versions", versions),
        ("machine", hardware),
        ("device of the runs", listed(r.get("hardware") for r in records)),
    ]
    commands = "\n".join(f"{run.name}\n    {run.record.get('command', 'not recorded')}" for run in study.compared)
    return [Table(["<", "<"], facts), Listing("The exact command of every finished run", commands, folded=True)]
