"""The corpora of a study: built before anything trains, and the same from the first run to the last."""

from typing import Any

from hydra.utils import instantiate

from dlm import version
from dlm.errors import UserError
from dlm.run import RunDirectory
from dlm.study.plan import Plan


def prepare(plan: Plan, quiet: bool = False) -> dict[str, str]:
    """Build every corpus the cells need, print its sizes and leak audit; return {cell: fingerprint}.

    Raises:
        UserError: if a corpus is too small for a budget, or is not the one that the study began with.
    """
    found: dict[str, str] = {}
    largest_first = sorted(plan.settings["cells"], key=lambda cell: -cell["unique_tokens"])
    told = set()
    for cell in largest_first:
        job = next((job for job in plan.jobs if job.cell == cell["cell"]), None)
        if job is None:
            continue
        source = instantiate(plan.compose(job.overrides).data)
        found[cell["cell"]] = source.fingerprint
        tokens = source.size("train")
        if tokens < cell["unique_tokens"] // source.seq_len * source.seq_len:
            raise UserError(
                f"cell {cell['cell']!r} wants {cell['unique_tokens']} unique tokens; the corpus has {tokens}"
            )
        if not quiet and source.fingerprint not in told:
            told.add(source.fingerprint)
            print(f"data {source.fingerprint}: {describe(source.audit, source.vocab_size)}")
        if not quiet:
            print(
                f"  {cell['cell']}: {tokens:,} unique tokens, "
                f"{tokens // source.seq_len:,} windows of {source.seq_len}"
            )
    check_data(plan, found)
    return found


def describe(audit: dict[str, Any], vocab_size: int) -> str:
    """Sizes and leaks in one line."""
    tokens = audit.get("tokens", {})
    sizes = ", ".join(f"{split} {size:,}" for split, size in tokens.items())
    parts = [f"{audit.get('name', 'corpus')}, {vocab_size} symbols", *([f"tokens: {sizes}"] if sizes else [])]
    if leak := audit.get("leak"):
        shares = ", ".join(f"{name.replace('_', ' ')} {share:.2%}" for name, share in leak["after"].items())
        parts.append(f"{leak['width']}-character windows found verbatim: {shares}")
    return "; ".join(parts)


def check_data(plan: Plan, found: dict[str, str]) -> None:
    """Raises UserError where plan.json or a finished run was made of other data than is here now."""
    advice = "bring that corpus back, or start elsewhere with output_dir=..."
    for cell, mark in plan.before.get("data", {}).items():
        if found.get(cell, mark) != mark:
            raise UserError(
                f"the corpus has changed: {cell} began with data {mark}, here is {found[cell]}; {advice}"
            )
    for job in plan.jobs:
        if job.finished:
            mark = RunDirectory(job.path).read_record().get("data", {}).get("fingerprint")
            if mark is not None and mark != found[job.cell]:
                raise UserError(
                    f"the corpus has changed: {job.run} saw data {mark}, here is {found[job.cell]}; {advice}"
                )


def check_code(plan: Plan) -> None:
    """Raises UserError where new runs would stand beside finished ones of another code version."""
    any_code = plan.command.any_code or plan.before.get("any_code", False)
    if any_code or not plan.pending:
        return
    here = version.code_version()
    for job in plan.jobs:
        if job.finished and (code := RunDirectory(job.path).read_record().get("code", "unknown")) != here:
            raise UserError(
                f"{job.run} was trained by code {code}, this is {here}: start elsewhere with output_dir=..., "
                "or let them stand side by side with any_code=true"
            )
