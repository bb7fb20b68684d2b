"""The picture of a generation: what the page says, what the terminal shows."""

import io
import os
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from dlm.trajectory import Bar, Screen, Trajectory, bars, colour, legible, page

HELLO = Trajectory(list("He <b>\n&"), [-1, -1, 0, 3, 3, 1, 0, 2], 4)


def drawn(samples=(HELLO,), notes=()):
    return page(samples, "MD4 by ancestral sampling", "run x", "python -m dlm.sample run=x --prompt 'He'", notes)


def test_the_page_is_whole_and_stands_alone():
    """Well-formed markup that loads nothing, with text as text: no sample can break out of its place."""
    html = drawn(notes=["a heuristic"])
    assert not re.search(r"(src|href)=|url\(|@import|<script", html)
    for part in ("MD4 by ancestral sampling", "a heuristic", "dlm.sample run=x", "6 tokens"):
        assert part in html
    assert "in 4 network" in html and "prefers-color-scheme: dark" in html
    body = html[html.index("<body>") : html.index("</html>")]
    text = "".join(ET.fromstring(body).find(".//p[@class='text']").itertext())
    assert text == "He <b>⏎\n&"


def test_tokens_carry_the_colour_of_their_step():
    html = drawn()
    first, last = ("#{:02x}{:02x}{:02x}".format(*colour(step, 3)) for step in (0, 3))
    assert html.count(f'style="background:{first};') == 2 and html.count(f'style="background:{last};') == 2
    assert html.count('class="given"') == 2 and html.count('title="given"') == 2
    assert html.count('title="step 4"') == 2 and "fixed at step 1" in html and "<span>step 4</span>" in html


def test_no_prompt_no_legend_for_it_and_no_tokens_no_failure():
    assert "given</span>" not in drawn([Trajectory(["a"], [0], 1)])
    assert "0 tokens generated in 0 network" in drawn([Trajectory(["a"], [-1], 0)])


def test_numbers_are_read_apart_and_letters_together():
    text = re.sub("<[^>]*>", "", drawn([Trajectory(["3", "14"], [0, 1], 2)]))
    assert "3 14" in text
    assert "ab" in re.sub("<[^>]*>", "", drawn([Trajectory(["a", "b"], [0, 1], 2)]))


def test_bars_hold_every_token_once():
    """One per step, or one per few where there are more than 48 steps; a prompt is in none."""
    assert bars([-1, 0, 2, 2], 2) == [Bar(0, 0, 1), Bar(1, 1, 0), Bar(2, 2, 2)]
    for steps in (1, 48, 49, 1000):
        many = bars(list(range(steps)), steps - 1)
        assert len(many) <= 48 and sum(bar.tokens for bar in many) == steps
        assert many[0].first == 0 and many[-1].last == steps - 1
        assert all(a.last + 1 == b.first for a, b in pairwise(many))
    assert bars([0], 0)[0].label == "step 1: 1 token" and bars([0, 1] * 50, 99)[0].label.startswith(
        "steps 1 to 3: "
    )


def test_every_colour_is_legible():
    """Text on each of 100 steps' colours has a contrast of at least 4.5 to 1 (WCAG AA)."""

    def luminance(rgb):
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for step in range(100):
        back = luminance(colour(step, 99))
        ink = {"#000": 0.0, "#fff": 1.0}[legible(colour(step, 99))]
        assert (max(back, ink) + 0.05) / (min(back, ink) + 0.05) >= 4.5


# --- the terminal -----------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def frames(out, states=(([-1], [[0, 3, 3]]), ([0], [[0, 3, 1]]), ([2], [[0, 2, 1]]))):
    with Screen(out, ["x", "y", "\n"], [True, False, False], last=2, pause=0.0) as screen:
        for steps, rows in states:
            screen.show(steps, rows)
    return out.getvalue()


def test_a_pipe_gets_one_plain_line_a_step():
    assert frames(io.StringIO()).splitlines() == ["step    0  x░░", "step    1  x░y", "step    3  x⏎y"]


def test_a_pipe_gets_no_line_for_what_happens_elsewhere():
    """The first sample is shown; a step in which only another moved is not repeated."""
    states = [([-1, -1], [[3], [3]]), ([0, 2], [[3], [0]]), ([1, 2], [[1], [0]])]
    assert len(frames(io.StringIO(), states).splitlines()) == 2


def test_a_terminal_is_redrawn_in_place_and_left_as_it_was(monkeypatch):
    """Every frame goes back over the last, tokens wear the colour of their step, the cursor comes back; also when
    the generation is interrupted."""
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 20)))
    text = frames(Terminal())
    assert text.startswith("\x1b[?25l") and text.endswith("\x1b[0m\x1b[?25h")
    assert text.count("\x1b[J") == 3 and "\x1b[3F" in text and "\x1b[4F" not in text
    assert "48;2;{};{};{}".format(*colour(2, 2)) in text and "\x1b[90mx" in text
    out = Terminal()
    with pytest.raises(KeyboardInterrupt), Screen(out, ["x"], [False], last=1):
        raise KeyboardInterrupt
    assert out.getvalue().endswith("\x1b[?25h")


def test_a_small_terminal_shows_what_fits(monkeypatch):
    """No line is wider than the terminal, no frame taller, or it could not be drawn over."""
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((10, 6)))
    rows = [[0, 1] * 30] * 4
    out = Terminal()
    with Screen(out, ["x", "yy"], [False] * 60, last=1, pause=0.0) as screen:
        screen.show([0] * 4, rows)
    text = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    lines = text.splitlines()
    assert len(lines) <= 5 and max(map(len, lines[1:])) <= 9
