"""Task by task: the results of each in `DIR/harness/<task>-<checkpoint>.json`, its headline among the measures."""

import hashlib
import json
import logging
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lm_eval
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from dlm.errors import UserError
from dlm.files import append_row, read_json, write_json
from dlm.harness.adapter import SuiteLM
from dlm.harness.scorer import TextScorer

HEADLINES = ("acc", "exact_match", "acc_norm", "f1", "word_perplexity", "perplexity")
UNITS = {"word_perplexity": "perplexity", "perplexity": "perplexity"}
SHOTS_SEED = 1234


def manager(include: str | None) -> TaskManager:
    """All tasks of the harness, or those of one folder. Raises UserError if there is no such folder."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if include is not None and not Path(include).is_dir():
        raise UserError(f"include={include} is not a folder of task files")
    return TaskManager(include_path=include, include_defaults=include is None)


def known(names: list[str], tasks: TaskManager) -> list[str]:
    """The names; raises UserError for one that is no task, group or tag."""
    for name in names:
        if name not in tasks.all_tasks:
            raise UserError(f"tasks={name}: the harness has no such task, group or tag")
    return names


def load(name: str, tasks: TaskManager, shots: int | None) -> Any:
    """A task with its documents. Raises UserError if they cannot be had."""
    from datasets.exceptions import DatasetsError

    try:
        loaded = tasks.load([name])
    except (OSError, ValueError, HTTPError, DatasetsError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"the documents of the task {name} cannot be read ({reason}): connect once, or use your own (include=)"
        ) from error
    if shots is not None:
        for task in loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=SHOTS_SEED)
    return loaded


def run_task(
    name: str,
    tasks: TaskManager,
    scorer: TextScorer,
    run: Path,
    checkpoint: dict[str, Any],
    weights: str,
    limit: int | None,
    shots: int | None,
) -> dict[str, Any]:
    """One task, unless it is there already; returns the row of the measures.

    Args:
        checkpoint: its name, epoch and whether it is cooled, for the row.
        weights: a hash of what is scored.
    """
    settings = {
        "likelihood": scorer.name,
        "draws": None if scorer.kind.count == "one" else scorer.draws,
        "tail": scorer.tail,
        "limit": limit,
        "shots": shots,
        "harness": lm_eval.__version__,
        "weights": weights,
    }
    file = run / "harness" / f"{name}-{checkpoint['checkpoint']}.json"
    if file.is_file() and (found := read_json(file))["settings"] == settings:
        return found["row"]
    loaded = load(name, tasks, shots)
    with redirect_stdout(sys.stderr):  # the harness tells of its progress where results belong
        result: Any = evaluate(SuiteLM(scorer), loaded, limit=limit, bootstrap_iters=1000)
    row = {**checkpoint, **headline(name, result), "key": key(name, checkpoint["checkpoint"], settings)}
    row["details"] |= {k: v for k, v in settings.items() if k != "weights"}
    file.parent.mkdir(exist_ok=True)
    results = {task: plain(metrics) for task, metrics in result["results"].items()}
    write_json(file, {"task": name, "settings": settings, "row": row, "results": results})
    append_row(run / "measures.jsonl", row)
    return row


def headline(name: str, result: Any) -> dict[str, Any]:
    """The task's main metric as a row: accuracy where there is one; everything else is in `details`."""
    metrics = plain(result["results"][name])
    metric = next((m for m in HEADLINES if m in metrics), None)
    if metric is None:
        metric = next(m for m, value in metrics.items() if isinstance(value, float) and not m.endswith("_stderr"))
    counts = result.get("n-samples", {})
    samples = [s for of in result.get("samples", {}).values() for s in of]
    options = [len(s["resps"]) for s in samples if s.get("resps") and len(s["resps"]) > 1]
    chance = sum(1 / n for n in options) / len(options) if options and metric.startswith("acc") else None
    se = metrics.get(f"{metric}_stderr")
    return {
        "measure": f"task:{name}",
        "split": "task",
        "value": metrics[metric],
        "se": se if isinstance(se, float) else None,
        "n": sum(count["effective"] for count in counts.values()) or len(samples),
        "chance": chance,
        "unit": UNITS.get(metric, "share"),
        "details": {"metric": metric, **{k: v for k, v in metrics.items() if isinstance(v, int | float)}},
    }


def plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics without the name of the filter that "acc,none" carries; ready for JSON."""
    names = {k: k.removesuffix(",none") for k in metrics}
    return {n: v if isinstance(v, int | float | str) else str(v) for k, n in names.items() for v in [metrics[k]]}


def key(name: str, checkpoint: str, settings: dict[str, Any]) -> str:
    """The identity of a row among the measures."""
    return hashlib.sha256(json.dumps([name, checkpoint, settings]).encode()).hexdigest()[:16]
