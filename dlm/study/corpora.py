"""The data of a study: built before anything trains, and the same from the first run to the last.

Text is one corpus per cell. A task may be written in another format by each arm, so it is one source per cell and
arm, and plan.json keeps the fingerprint of each.
"""

from typing import Any

from hydra.utils import instantiate

from dlm import config, version
from dlm.data.source import Source
from dlm.errors import UserError
from dlm.run import RunDirectory
from dlm.study.plan import Job, Plan
from dlm.study.scale import tokens_of

Fingerprints = dict[str, str | dict[str, str]]
"""{cell: fingerprint}, or {cell: {arm: fingerprint}} where the cell counts sequences."""


def prepare(plan: Plan, quiet: bool = False) -> Fingerprints:
    """Build all data that the cells need, print sizes and leak audits; return the fingerprints.

    Raises:
        UserError: if a corpus is too small for a budget, or is not the one that the study began with.
    """
    found: Fingerprints = {}
    built: dict[str, tuple[str, int, int]] = {}  # data settings -> fingerprint, training tokens, seq_len
    told = set()

    def largest(cell: dict[str, Any]) -> int:
        return -cell.get("unique_tokens", cell.get("sequences", 0))

    for cell in sorted(plan.settings["cells"], key=largest):
        for job in sources_of(plan, cell):
            cfg = plan.compose(job.overrides)
            key = str(config.resolved(cfg.data))
            if key not in built:
                source: Source = instantiate(cfg.data)
                built[key] = source.fingerprint, source.size("train"), source.seq_len
                if not quiet and source.fingerprint not in told:
                    told.add(source.fingerprint)
                    print(f"data {source.fingerprint}: {describe(source.audit, source.vocab_size)}", flush=True)
            fingerprint, tokens, seq_len = built[key]
            check_size(cell, job, tokens, seq_len)
            if "sequences" in cell:
                of_arm = found.setdefault(cell["cell"], {})
                assert isinstance(of_arm, dict)
                of_arm[job.arm] = fingerprint
            else:
                found[cell["cell"]] = fingerprint
            if not quiet:
                print(f"  {size_line(cell, job, tokens, seq_len)}", flush=True)
    check_data(plan, found)
    return found


def sources_of(plan: Plan, cell: dict[str, Any]) -> list[Job]:
    """One job for each source of a cell: any job, or the first of each arm where the cell counts sequences."""
    jobs = [job for job in plan.jobs if job.cell == cell["cell"]]
    if "sequences" not in cell:
        return jobs[:1]
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.arm, job)
    return list(first.values())


def check_size(cell: dict[str, Any], job: Job, tokens: int, seq_len: int) -> None:
    """Raises UserError where the training split is smaller than the cell's budget."""
    wanted = tokens_of(cell, seq_len) // seq_len * seq_len
    if tokens >= wanted:
        return
    if "sequences" in cell:
        raise UserError(
            f"cell {cell['cell']!r} wants {cell['sequences']} sequences; the data of {job.arm} have "
            f"{tokens // seq_len}"
        )
    raise UserError(f"cell {cell['cell']!r} wants {cell['unique_tokens']} unique tokens; the corpus has {tokens}")


def size_line(cell: dict[str, Any], job: Job, tokens: int, seq_len: int) -> str:
    if "sequences" in cell:
        return f"{cell['cell']}, {job.arm}: {tokens // seq_len:,} sequences of {seq_len} tokens"
    return f"{cell['cell']}: {tokens:,} unique tokens, {tokens // seq_len:,} windows of {seq_len}"


def describe(audit: dict[str, Any], vocab_size: int) -> str:
    """Sizes and leaks in one line."""
    tokens = audit.get("tokens", {})
    sizes = ", ".join(f"{split} {size:,}" for split, size in tokens.items())
    parts = [f"{audit.get('name', 'corpus')}, {vocab_size} symbols", *([f"tokens: {sizes}"] if sizes else [])]
    if leak := audit.get("leak"):
        shares = ", ".join(f"{name.replace('_', ' ')} {share:.2%}" for name, share in leak["after"].items())
        parts.append(f"{leak['width']}-character windows found verbatim: {shares}")
    return "; ".join(parts)


def fingerprint_of(found: Fingerprints, cell: str, arm: str) -> str | None:
    """The fingerprint of an arm's data in a cell, where it is known."""
    of_cell = found.get(cell)
    return of_cell.get(arm) if isinstance(of_cell, dict) else of_cell


def check_data(plan: Plan, found: Fingerprints) -> None:
    """Raises UserError where plan.json or a finished run was made of other data than is here now."""
    advice = "bring that corpus back, or start elsewhere with output_dir=..."
    began: Fingerprints = plan.before.get("data", {})
    for cell, of_cell in began.items():
        for arm, mark in of_cell.items() if isinstance(of_cell, dict) else [("", of_cell)]:
            here = fingerprint_of(found, cell, arm)
            if here is not None and here != mark:
                name = f"{cell}, {arm}," if arm else cell
                raise UserError(f"the corpus has changed: {name} began with data {mark}, here is {here}; {advice}")
    for job in plan.jobs:
        if job.finished:
            mark = RunDirectory(job.path).read_record().get("data", {}).get("fingerprint")
            here = fingerprint_of(found, job.cell, job.arm)
            if mark is not None and mark != here:
                raise UserError(f"the corpus has changed: {job.run} saw data {mark}, here is {here}; {advice}")


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
