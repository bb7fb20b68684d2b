"""The report of this laboratory: what is destroyed, what is generated, and what a network is charged for it.

    python experiments/information/report.py outputs/information/<scale>

reads what measure.py wrote there and writes report.html, results.json, figures/*.svg and *.png, a CSV per figure.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from report_figures import EXACT, orders_figure, shuffles_figure, slopes_figure, steps_figure, time_figure
from report_results import BIT, Lab, compute

from dlm.errors import UserError
from dlm.files import read_json
from dlm.report.page import Prose, Section, Table, chip, page


def plus_minus(pair: Sequence[float | None], digits: int = 3) -> str:
    value, se = pair
    assert value is not None
    text = f"{value + 0:.{digits}f}".replace("-" + f"{0:.{digits}f}", f"{0:.{digits}f}")
    return text if se is None else f"{text} ± {se:.{digits}f}"


def verdict_lines(results: dict[str, Any]) -> list[str]:
    """Three findings in plain text, with a caution first at the smoke scale."""
    lines = ["Smoke scale: the trained networks are hardly trained."] if results["smoke"] else []
    failed = [c["what"] for c in results["checks"] if not c["holds"]]
    path = next(r for r in results["charged"] if r["network"] == "exact" and r["method"] == "dfm_uniform")
    trained = [r for r in results["charged"] if r["network"] != "exact"]
    ends = [max((r for r in trained if r["method"] == m), key=steps_of) for m in ("md4", "shuffle")]
    spare = "; ".join(f"{r['method']} {plus_minus((r['above'], r['se']))}" for r in ends)
    held = len(results["checks"]) - len(failed)
    lines.append(
        f"The bound is a slope: {held} of {len(results['checks'])} identities hold"
        + (f" (NOT: {'; '.join(failed)})" if failed else "")
        + f"; an exact network pays for what is destroyed and no more, except flow matching from uniform tokens, "
        f"whose path bound asks {path['above']:.3f} bits per sequence beyond the {results['entropy']:.3f} there "
        f"are; after {ends[0]['network']} a table still pays, in bits above that: {spare}."
    )
    parts = []
    for r in results["noise"]:
        if r["language"] == "sentences":
            parts.append(f"{r['destroyer']} generates {r['generated'] + 0:.2f} and leaves {r['left'] + 0:.2f}")
    first = next(r for r in results["noise"] if r["language"] == "sentences")
    lines.append(
        f"Forgetting has a price in noise: to destroy the {first['sent']:.2f} bits of a sentence of "
        f"{first['length']} words, {'; '.join(parts)} (bits of noise at most; bits still known after "
        f"{first['length']} steps)."
    )
    rows = results["in_order"]
    any_order = max((r for r in rows if r["network"].startswith("any order")), key=steps_of)
    only = max((r for r in rows if r["network"].startswith("in order only")), key=steps_of)
    exact = next(r for r in rows if r["exact"])
    lines.append(
        f"Used in order, an any-order table of {any_order['network'].split(', ', 1)[1]} pays "
        f"{plus_minus(any_order['in_order'])} bits per sequence above the entropy and "
        f"{plus_minus(any_order['mean'])} in the mean over orders; a table trained in order only, for as long, "
        f"pays {plus_minus(only['in_order'])} in order but {plus_minus(only['mean'])} in the mean; exact "
        f"conditionals pay {plus_minus(exact['in_order'])} in every order."
    )
    return lines


def steps_of(row: dict[str, Any]) -> int:
    """The number in "... 1,200 steps"."""
    return int(row["network"].replace(",", "").split()[-2])


def mark(value: float, tone: str) -> Any:
    """Bits of something, as a chip unless there are none."""
    return chip(f"{value:.3f}", tone) if value > 5e-4 else "0"


def channels_table(lab: Lab) -> Table:
    rows = []
    for c in lab.channels["channels"]:
        values = {key: c[key] / BIT for key in ("received", "preserved", "destroyed", "generated")}
        tones = (("preserved", "good"), ("destroyed", "bad"), ("generated", "maybe"))
        marks = (mark(values[key], tone) for key, tone in tones)
        rows.append((c["channel"], f"{abs(values['received']):.3f}", *marks))
    alice = ", ".join(f"{p:g}" for p in lab.channels["alice"])
    sent = lab.channels["sent"] / BIT
    caption = f"Alice says 0, 1, 2 with probabilities {alice}: {sent:g} bits. What Bob receives, in bits. {EXACT}"
    return Table(
        ["<channels, one after another", "received", "preserved", "destroyed", "generated"], rows, caption
    )


def checks_table(results: dict[str, Any]) -> Table:
    rows = [
        (
            c["what"],
            f"{c['value']:.1e}" if c["value"] > 0 else "none",
            f"{c['allowed']:.0e}",
            chip("holds", "good") if c["holds"] else chip("fails", "bad"),
        )
        for c in results["checks"]
    ]
    caption = "In nats (the last two: probabilities). Exact sums; what is left are rounding and quadrature."
    return Table(
        ["<identity", "largest violation", "allowed", "<verdict"],
        rows,
        caption,
    )


def methods_table(lab: Lab) -> Table:
    curves = next(iter(lab.processes["languages"].values()))["curves"]
    rows = [(", ".join(c["methods"]), "masks" if c["masks"] else "random tokens") for c in curves]
    return Table(["<methods", "<by"], rows, folded="Which methods destroy alike, at every time")


def charged_table(results: dict[str, Any]) -> Table:
    rows = [(r["method"], r["network"], plus_minus((r["above"], r["se"]), 4)) for r in results["charged"]]
    caption = (
        "What the integrated bound charges above the information lost, bits per sequence (± s.e. over seeds)."
    )
    return Table(["<method", "<network", "bits above"], rows, caption)


def orders_table(results: dict[str, Any]) -> Table:
    columns = ("in_order", "mean", "gap", "random")
    rows = [(r["network"], *(plus_minus(r[c]) for c in columns)) for r in results["in_order"]]
    head = ["<network", "left to right", "mean over orders", "difference", "a random order's law"]
    return Table(head, rows, "Bits per sequence above the entropy; ± one standard error over seeds.")


LEDE = Markup(
    "A diffusion model is trained to undo a process that <b>destroys</b> information about the data. Where does "
    "the information go, how much <b>noise</b> must be generated to get rid of it, and what is a network charged "
    "for bringing it back? On languages small enough to be listed, all of this is a finite sum: <b>preserved</b> "
    "I(x0; x_t), <b>destroyed</b> H(x0 | x_t), <b>generated</b> H(x_t | x0)."
)


def build(lab: Lab, results: dict[str, Any]) -> str:
    """The page."""
    facts = [line for line in results["verdict"] if not line.startswith("Smoke scale")]
    sections = [
        Section("Verdict", [Prose(Markup("<b>{}</b>").format(line)) for line in facts] + [checks_table(results)]),
        Section("Channels", [channels_table(lab), shuffles_figure(lab)]),
        Section("Information against time", [time_figure(lab), methods_table(lab)]),
        Section("One token at a time", [steps_figure(lab)]),
        Section("The bound is a slope", [slopes_figure(lab), charged_table(results)]),
        Section("An any-order model used in order", [orders_figure(lab, results), orders_table(results)]),
        Section("Provenance", lab.measured.provenance()),
    ]
    warning = results["verdict"][0] if results["smoke"] else ""
    languages = "; ".join(
        f"{name}: {x['sequences']} sequences of {x['length']} over {x['vocab_size']} tokens, "
        f"{x['entropy'] / BIT:.2f} bits"
        for name, x in lab.processes["languages"].items()
    )
    return page(
        "Where does the information go?", f"Scale {results['scale']}. {languages}", LEDE, sections, warning
    )


def main(directory: Path) -> Path:
    """Write the report of a measured directory and return the page's path. Raises UserError."""
    lab = Lab(Path(directory))
    results = compute(lab)
    results["verdict"] = verdict_lines(results)
    return lab.measured.write(build(lab, results), results)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} DIRECTORY")
    try:
        written = main(Path(sys.argv[1]))
        print("\n".join([*read_json(written.parent / "results.json")["verdict"], str(written)]))
    except UserError as error:
        sys.exit(str(error))
