"""A report as one self-contained HTML page: prose, tables, listings and inline SVG, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape


class Prose(NamedTuple):
    """A paragraph of ready markup; plain strings are escaped."""

    html: str
    kind: str = "prose"


class Figure(NamedTuple):
    """An inline SVG with a caption, the command that draws it again, its number and the CSV behind it."""

    name: str
    svg: Markup
    caption: str
    command: str
    kind: str = "figure"
    number: str = ""
    csv: str = ""


class Table(NamedTuple):
    """A table; columns whose header starts with "<" are set left, the others right.

    `folded` hides it at first; `wrap` lets every cell break across lines, for tables of sentences.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    folded: str = ""
    kind: str = "table"
    wrap: bool = False


class Listing(NamedTuple):
    """Preformatted text under a one-line heading, folded away if `folded`."""

    title: str
    text: str
    folded: bool = False
    kind: str = "listing"


class Section(NamedTuple):
    """A titled part of the page; the title makes its entry in the table of contents."""

    title: str
    blocks: Sequence[Prose | Figure | Table | Listing]

    @property
    def anchor(self) -> str:
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def chip(text: str, tone: str) -> Markup:
    """A small rounded mark; tones: good, maybe, none, bad."""
    return Markup('<span class="chip {}">{}</span>').format(tone, text)


def swatch(colour: str, label: str) -> Markup:
    """A name after a dot in its colour."""
    return Markup('<span class="dot" style="background:{}"></span>{}').format(colour, label)


def page(title: str, subtitle: str, lede: str, sections: Sequence[Section], warning: str = "") -> str:
    """One self-contained HTML document. Strings are escaped, `Markup` is not."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["left"] = lambda head: escape(head[1:]) if head.startswith("<") else escape(head)
    return environment.from_string(PAGE).render(
        title=title, subtitle=subtitle, lede=lede, sections=sections, warning=warning
    )


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { --ink: #1f2328; --soft: #667078; --line: #e4e6e8; --paper: #fff; --wash: #f7f8f9; --link: #0a5a8f; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 72rem; color: var(--ink); background: var(--paper);
  font: 300 1.02rem/1.6 "Source Sans 3", "Helvetica Neue", "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 2rem; font-weight: 300; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.35rem; font-weight: 400; margin: 3.2rem 0 .8rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; font-weight: 600; margin: 1.6rem 0 .4rem; }
p, ul { max-width: 44rem; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
b, strong { font-weight: 600; }
.subtitle { color: var(--soft); margin: .3rem 0 1.6rem; }
nav { font-size: .92rem; margin: 1.6rem 0; } nav a { margin-right: 1.1rem; white-space: nowrap; }
.warning { background: #fff6e5; border-left: 3px solid #e0a100; padding: .7rem 1rem; max-width: 44rem; }
figure { margin: 1.4rem 0 2rem; max-width: 58rem; } .wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
figure svg { width: 100%; height: auto; min-width: 40rem; display: block; }
figcaption, .caption { color: var(--soft); font-size: .9rem; max-width: 48rem; line-height: 1.5; }
figcaption { margin-top: .5rem; } .caption { margin: 1.8rem 0 0; } .caption + .wide table { margin-top: .6rem; }
code { font: .86em/1.4 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th { font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--ink); vertical-align: bottom; }
th, td { text-align: right; padding: .32rem .75rem .32rem 0; } .l { text-align: left; }
td { border-bottom: 1px solid var(--line); vertical-align: top; }
td:not(.l), td:nth-child(-n+3) { white-space: nowrap; }
td.l:last-child { white-space: normal; min-width: 12rem; }
table.wrap td { white-space: normal; } table.wrap td:nth-child(2) { min-width: 13rem; }
tbody tr:last-child td { border-bottom: 1px solid var(--ink); }
pre { background: var(--wash); padding: .8rem 1rem; margin: .4rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere;
  font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--link); }
.dot { display: inline-block; width: .62em; height: .62em; border-radius: 50%; margin-right: .45em; }
.chip { display: inline-block; border-radius: .8em; padding: 0 .6em; font-size: .84em; white-space: nowrap; }
.good { background: #dff2e7; color: #11613a; } .maybe { background: #fdf0d2; color: #7a5200; }
.none { background: #eceef0; color: #4b545c; } .bad { background: #fbe3e0; color: #8c2318; }
.small { color: var(--soft); font-size: .88em; }
@media (max-width: 40rem) { body { padding: 1.2rem .9rem 3rem; } h1 { font-size: 1.55rem; } }
@media print { nav { display: none; } figure, table { break-inside: avoid; } body { max-width: none; } }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="subtitle">{{ subtitle }}</p>
{% if warning %}
<p class="warning" role="note">{{ warning }}</p>
{% endif %}
<p>{{ lede }}</p>
<nav aria-label="Contents">{% for s in sections %}<a href="#{{ s.anchor }}">{{ s.title }}</a> {% endfor %}</nav>
{% for s in sections %}
<section id="{{ s.anchor }}">
<h2>{{ s.title }}</h2>
{% for b in s.blocks %}
{% if b.kind == "prose" %}
<p>{{ b.html }}</p>
{% elif b.kind == "figure" %}
<figure id="{{ b.name }}"><div class="wide" role="img" aria-label="{{ b.caption|striptags }}">{{ b.svg }}</div>
<figcaption>{% if b.number %}<b>{{ b.number }}.</b> {% endif %}{{ b.caption }} <span class="small">Drawn by
<code>{{ b.command }}</code>{% if b.csv %} from <a href="{{ b.csv }}">its data</a>{% endif %}; also as
<code>figures/{{ b.name }}.svg</code> and <code>.png</code>.</span></figcaption></figure>
{% elif b.kind == "table" %}
{% if b.folded %}<details><summary>{{ b.folded }}</summary>{% endif %}
{% if b.caption %}<p class="caption">{{ b.caption }}</p>{% endif %}
<div class="wide"><table{% if b.wrap %} class="wrap"{% endif %}>
<thead><tr>
{% for h in b.head %}<th{% if h[0] == "<" %} class="l"{% endif %}>{{ h|left }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in b.rows %}
<tr>
{% for x in row %}<td{% if b.head[loop.index0][0] == "<" %} class="l"{% endif %}>{{ x }}</td>{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% if b.folded %}</details>{% endif %}
{% else %}
{% if b.folded %}<details><summary>{{ b.title }}</summary>{% else %}<h3>{{ b.title }}</h3>{% endif %}
<pre>{{ b.text }}</pre>{% if b.folded %}</details>{% endif %}
{% endif %}
{% endfor %}
</section>
{% endfor %}
</body>
</html>
"""
