"""How a sample came about: a page of it, and its generation shown in a terminal.

Each token is coloured by the step at which it took its final value, dark first and bright last; a prompt is grey.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import NamedTuple, TextIO

import jinja2

VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
MOST_BARS = 48


class Trajectory(NamedTuple):
    """A finished sample: its tokens as text, when each was fixed (-1: given), and what that cost."""

    pieces: Sequence[str]
    fixed_at: Sequence[int]
    evaluations: int


def colour(step: int, last: int) -> tuple[int, int, int]:
    """The colour of a step out of 0..last."""
    place = (step / last if last else 0.0) * (len(VIRIDIS) - 1)
    low = min(int(place), len(VIRIDIS) - 2)
    r, g, b = (round(a + (b - a) * (place - low)) for a, b in zip(VIRIDIS[low], VIRIDIS[low + 1], strict=True))
    return r, g, b


def legible(background: tuple[int, int, int]) -> str:
    """Black or white, whichever stands out more on a background (WCAG relative luminance)."""
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if luminance > 0.179 else "#fff"


class Bar(NamedTuple):
    """Tokens fixed in the steps `first` to `last`."""

    first: int
    last: int
    tokens: int

    @property
    def label(self) -> str:
        steps = (
            f"step {self.first + 1}" if self.first == self.last else f"steps {self.first + 1} to {self.last + 1}"
        )
        return f"{steps}: {self.tokens} token{'' if self.tokens == 1 else 's'}"


def bars(fixed_at: Sequence[int], last: int) -> list[Bar]:
    """Tokens fixed per step, or per few steps where there are too many steps for a bar each."""
    width = -(-(last + 1) // MOST_BARS)
    firsts = range(0, last + 1, width)
    return [
        Bar(first, min(first + width - 1, last), sum(first <= step < first + width for step in fixed_at))
        for first in firsts
    ]


def page(
    samples: Sequence[Trajectory],
    title: str,
    subtitle: str,
    command: str,
    notes: Sequence[str] = (),
    steps: int = 1,
) -> str:
    """One self-contained HTML document: every sample in the colours of its `steps`, tokens per step beside it."""
    last = max([steps - 1, *(step for sample in samples for step in sample.fixed_at)])
    cells = [
        {
            "name": f"Sample {number}",
            "evaluations": sample.evaluations,
            "plural": "" if sample.evaluations == 1 else "s",
            "tokens": [
                token(piece, step, last) for piece, step in zip(sample.pieces, sample.fixed_at, strict=True)
            ],
            "generated": sum(step >= 0 for step in sample.fixed_at),
            "bars": bars(sample.fixed_at, last),
        }
        for number, sample in enumerate(samples, start=1)
    ]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(hexadecimal=lambda step: "#{:02x}{:02x}{:02x}".format(*colour(step, last)))
    return environment.from_string(PAGE).render(
        title=title,
        subtitle=subtitle,
        command=command,
        notes=notes,
        samples=cells,
        last=last,
        stops=[round(last * k / 8) for k in range(9)],
        apart=" " if words(samples) else "",
        highest=max((bar.tokens for cell in cells for bar in cell["bars"]), default=0) or 1,
        width=-(-(last + 1) // MOST_BARS),
        prompted=any(step < 0 for sample in samples for step in sample.fixed_at),
    )


def words(samples: Sequence[Trajectory]) -> bool:
    """Whether tokens are numbers, to be read apart, and not pieces of a running text."""
    return all(piece.isdigit() for sample in samples for piece in sample.pieces)


def token(piece: str, step: int, last: int) -> dict[str, str]:
    """A token's text with its white space made visible, its style and its tooltip."""
    visible = piece.replace("\t", "⇥").replace("\r", "␍").replace("\n", "⏎\n") or "∅"
    if step < 0:
        return {"text": visible, "kind": "given", "style": "", "tip": "given"}
    background = colour(step, last)
    style = "background:#{:02x}{:02x}{:02x};color:{}".format(*background, legible(background))
    return {"text": visible, "kind": "drawn", "style": style, "tip": f"step {step + 1}"}


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
:root { --ink: #1f2328; --soft: #667078; --line: #d9dcdf; --paper: #fff; --given: #e7e9eb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --soft: #9aa4ac; --line: #3a4046; --paper: #14171a; --given: #33393f; }
}
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; color: var(--ink); background: var(--paper);
  font: 300 1rem/1.55 "Source Sans 3", "Helvetica Neue", "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; font-weight: 300; line-height: 1.2; margin: 0; }
h2 { font-size: 1rem; font-weight: 600; margin: 0 0 .5rem; }
h2 span, .soft, text { color: var(--soft); fill: var(--soft); font-weight: 300; }
.soft { margin: .3rem 0 1.2rem; }
code, .text { font: .86rem/1.75 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
section { display: grid; grid-template-columns: minmax(0, 1fr) 21rem; gap: .4rem 2.2rem; padding: 1.3rem 0;
  border-top: 1px solid var(--line); }
section h2 { grid-column: 1 / -1; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; }
.text span { border-radius: .18em; padding: .1em 0; }
.given { background: var(--given); }
.legend { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; margin: 0 0 1.4rem; font-size: .9rem; }
.ramp { width: 14rem; height: .8rem; border-radius: .2rem; }
.swatch { width: 1.6rem; height: .8rem; border-radius: .2rem; margin-left: 1.2rem; }
svg { width: 100%; height: auto; align-self: start; } svg text { font-size: 11px; } .axis { stroke: var(--line); }
rect { stroke: var(--soft); stroke-width: .4; } rect:hover { opacity: .7; }
@media (max-width: 48rem) { section { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
{% for note in notes %}
<p><b>Note</b>: {{ note }}</p>
{% endfor %}
<div class="legend"><span>fixed at step 1</span>
<span class="ramp" style="background:linear-gradient(90deg{% for s in stops %},{{ hexadecimal(s) }}{% endfor %})">
</span><span>step {{ last + 1 }}</span>
{% if prompted %}<span class="swatch given"></span><span>given</span>{% endif %}
</div>
{% for s in samples %}
<section>
<h2>{{ s.name }}
<span>{{ s.generated }} tokens generated in {{ s.evaluations }} network evaluation{{ s.plural }}</span></h2>
<p class="text">{% for t in s.tokens %}<span class="{{ t.kind }}" style="{{ t.style }}"
 title="{{ t.tip }}">{{ t.text }}</span>{{ apart }}{% endfor %}</p>
<svg viewBox="0 0 336 150" role="img" aria-label="Tokens fixed per step, {{ s.name }}">
<text x="30" y="12">tokens fixed per {{ "step" if width == 1 else "%d steps"|format(width) }}</text>
<text x="24" y="30" text-anchor="end">{{ highest }}</text><text x="24" y="128" text-anchor="end">0</text>
<path class="axis" d="M30 124.5H330M30 26.5H330"/>
{% set slot = 300 / s.bars|length %}
{% for b in s.bars %}{% set h = 98 * b.tokens / highest %}
<rect x="{{ "%.2f"|format(30 + slot * loop.index0 + slot * 0.06) }}" width="{{ "%.2f"|format(slot * 0.88) }}"
 y="{{ "%.2f"|format(124 - h) }}" height="{{ "%.2f"|format(h) }}" fill="{{ hexadecimal(b.last) }}">
<title>{{ b.label }}</title></rect>
{% endfor %}
<text x="30" y="142">step 1</text><text x="330" y="142" text-anchor="end">{{ last + 1 }}</text>
</svg>
</section>
{% endfor %}
<p class="soft">Made by <code>{{ command }}</code></p>
</body>
</html>
"""


class Screen:
    """Samples being generated, redrawn in place on a terminal; on anything else, one line per change of the first.

    Use as a context manager: the cursor comes back however the generation ends.
    """

    def __init__(self, out: TextIO, pieces: Sequence[str], given: Sequence[bool], last: int, pause: float = 0.05):
        self.out, self.pieces, self.given, self.last, self.pause = out, pieces, given, max(last, 1), pause
        self.live = out.isatty()
        self.before: list[list[int]] = []
        self.fixed: list[list[int]] = []
        self.height = 0
        self.apart = " " if all(piece.isdigit() for piece in pieces) else ""

    def __enter__(self) -> Screen:
        if self.live:
            self.out.write("\x1b[?25l")
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.out.write("\x1b[0m\x1b[?25h")
            self.out.flush()

    def show(self, steps: Sequence[int], rows: Sequence[Sequence[int]]) -> None:
        """Draw the states that the samples have reached; an id without a text is a mask."""
        if not self.before:
            self.fixed = [[-1] * len(row) for row in rows]
        for fixed, step, row, old in zip(self.fixed, steps, rows, self.before or rows, strict=True):
            for i, (new, was) in enumerate(zip(row, old, strict=True)):
                if new != was:
                    fixed[i] = step
        first_moved = not self.before or list(rows[0]) != self.before[0]
        self.before = [list(row) for row in rows]
        if self.live:
            self.redraw(steps)
            time.sleep(self.pause)
        elif first_moved:
            self.out.write(f"step {steps[0] + 1:>4}  {self.apart.join(self.plain(v) for v in self.before[0])}\n")

    def plain(self, value: int) -> str:
        """A token on one line; the mask as a shade."""
        return self.pieces[value].replace("\n", "⏎") if value < len(self.pieces) else "░"

    def redraw(self, steps: Sequence[int]) -> None:
        size = shutil.get_terminal_size()
        lines: list[str] = []
        for number, (step, row, fixed) in enumerate(zip(steps, self.before, self.fixed, strict=True), start=1):
            lines.append(f"\x1b[1msample {number}\x1b[0m  step {step + 1}")
            lines += [*self.wrapped(row, fixed, size.columns - 1), ""]
        lines = lines[: max(1, size.lines - 1)]
        back = f"\x1b[{self.height}F" if self.height else ""
        self.out.write(back + "\x1b[J" + "\n".join(lines) + "\n")
        self.out.flush()
        self.height = len(lines)

    def wrapped(self, row: Sequence[int], fixed: Sequence[int], width: int) -> list[str]:
        """The tokens of a row in their colours, in lines of at most `width` characters; new lines are kept."""
        lines, room = [""], width
        for value, step, given in zip(row, fixed, self.given, strict=True):
            piece = self.plain(value) + self.apart
            if len(piece) > room and room < width:
                lines, room = [*lines, ""], width
            lines[-1] += self.painted(piece[:width], step, given, value >= len(self.pieces))
            room -= len(piece)
            if "⏎" in piece:
                lines, room = [*lines, ""], width
        return lines

    def painted(self, piece: str, step: int, given: bool, masked: bool) -> str:
        if given or masked or step < 0:
            return f"\x1b[90m{piece}\x1b[0m"
        r, g, b = colour(min(step, self.last), self.last)
        ink = "30" if legible((r, g, b)) == "#000" else "97"
        return f"\x1b[48;2;{r};{g};{b};{ink}m{piece}\x1b[0m"
