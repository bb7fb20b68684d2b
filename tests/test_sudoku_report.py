"""The report of the order study: what it says of planted studies, whole and in parts."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from markupsafe import Markup
from planted_sudoku import ARMS, PI, RULES, planted

from dlm.errors import UserError
from dlm.report.decoded import Decoded
from dlm.report.tasks import load_tasks, outcomes
from dlm.study.command import load


@pytest.fixture(scope="module")
def report():
    return load(Path(__file__).parents[1] / "experiments/sudoku-order/report.py")


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not rendered, which takes most of the time of a report."""
    monkeypatch.setattr("dlm.report.panels.save", lambda figure, directory, name: nothing(figure, directory))


def nothing(figure, directory):
    plt.close(figure)
    (directory / "figures").mkdir(exist_ok=True)
    return Markup("<svg></svg>")


@pytest.fixture(scope="module")
def made(report, tmp_path_factory):
    """A study of everything, and its results; figures are not rendered."""
    study = planted(tmp_path_factory.mktemp("whole"), snapshots=(1, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dlm.report.panels.save", lambda figure, directory, name: nothing(figure, directory))
        report.main(study)
    return study, json.loads((study / "results.json").read_text())


def answers(report, study):
    results = report.compute(load_tasks(study))
    return {h["id"]: h["answer"] for h in results["hypotheses"]}


def test_the_page_has_every_figure_and_table(made):
    study, results = made
    page = (study / "report.html").read_text()
    for number in [f"F{k}" for k in range(1, 10)]:
        assert f"<b>{number}.</b>" in page, number
    for number in [f"T{k}." for k in range(2, 9)]:
        assert number in page, number
    assert (
        "Not available" not in page and "<script" not in page and "http://" not in page.split("</style>")[1][:99]
    )
    assert {p.name.split("-")[0] for p in (study / "figures").glob("*.csv")} == {f"f{k}" for k in range(1, 10)}
    assert (study / "decodings.csv").read_text().count("\n") == 1 + len(load_tasks(study).decodings)
    assert len(results["verdict"]) == len(results["hypotheses"])


def test_figures_are_drawn(report, tmp_path):
    study = planted(
        tmp_path, sizes=(4,), seeds=(0,), puzzles=20, snapshots=(1, 2), nae=False, zebra=False, text=False
    )
    report.main(study)
    drawn = {p.name for p in (study / "figures").iterdir()}
    assert {"f3-noise.svg", "f3-noise.png", "f3-noise.csv", "f6-boards-sudoku-4x4.svg"} <= drawn
    assert (study / "report.html").read_text().count("<svg") == len([n for n in drawn if n.endswith(".svg")])


def test_what_was_planted_is_found(made):
    _, results = made
    found = {h["id"]: h["answer"] for h in results["hypotheses"]}
    assert found == {
        "S1": "yes", "S2": "yes", "S3": "yes", "S4": "yes", "S5": "yes", "S6": "yes", "S7": "no", "S8": "yes",
        "S9": "yes", "S10": "yes", "S11": "yes", "S12": "yes", "S13": "yes", "S14": "yes", "S15": "yes",
        "S16": "undecided",
    }  # fmt: skip


def test_shares_are_those_of_the_rows(made):
    study, results = made
    one = next(
        r for r in results["solved"]
        if (r["cell"], r["rule"], r["noise_name"], r["checkpoint"], r["split"], r["pace"])
        == ("sudoku-6x6", "margin", "no noise", "best", "report", "1 per step")
    )  # fmt: skip
    rows = [json.loads(x) for s in (0, 1, 2)
            for x in (study / f"runs/sudoku-6x6-mdm-s{s}/decodings.jsonl").read_text().splitlines()]  # fmt: skip
    own = [
        r for r in rows
        if (r["setting"]["policy"], r["setting"]["noise"], r["checkpoint"], r["split"], r["setting"]["per_step"])
        == ("margin", "none", "best", "report", 1)
    ]  # fmt: skip
    assert len(own) == 3
    assert one["value"] == pytest.approx(sum(r["solved"] / r["puzzles"] for r in own) / 3)
    assert one["low"] < one["value"] < one["high"] and one["seeds"] == 3


def test_a_score_that_decides_by_itself_is_not_the_noise(report, tmp_path):
    """Margin far ahead without noise: no equivalence, and the gap is the score's."""
    rules = RULES | {("margin", "probability"): (0.95, 0.9), ("top_probability", "probability"): (0.3, 0.25)}
    found = answers(report, planted(tmp_path, rules=rules, nae=False, zebra=False, text=False))
    assert (found["S2"], found["S5"], found["S3"]) == ("no", "no", "no")


def test_a_noise_that_hurts_all_alike_is_not_the_scale(report, tmp_path):
    rules = RULES | {("log_ratio", "probability"): (0.82, 0.07)}
    found = answers(report, planted(tmp_path, sizes=(6,), rules=rules, nae=False, zebra=False, text=False))
    assert (found["S2"], found["S4"], found["S5"]) == ("yes", "no", "no")


def test_a_lead_under_noise_that_is_nothing_like_the_published_gap(report, tmp_path):
    """15 points ahead is ahead, but neither far nor a gap of 71 points; 35 would be."""
    for lead, said in ((0.15, "no"), (0.45, "yes")):
        rules = RULES | {("log_ratio", "probability"): (0.82, 0.10 + lead)}
        study = planted(tmp_path / said, sizes=(4,), rules=rules, arms={}, nae=False, zebra=False, text=False)
        found = answers(report, study)
        assert (found["S4"], found["S5"]) == (said, said)


def test_a_score_that_is_worse_without_noise_leaves_the_gap_undecided(report, tmp_path):
    for score in ("margin", "log_ratio"):
        rules = RULES | {(score, "probability"): (0.6, RULES[score, "probability"][1])}
        study = planted(tmp_path / score, sizes=(4,), rules=rules, arms={}, nae=False, zebra=False, text=False)
        found = answers(report, study)
        assert (found["S4"], found["S5"]) == ("yes", "undecided")
        assert found["S2"] == ("no" if score == "margin" else "yes")


def test_a_lead_that_may_be_none_cannot_be_lost(report, tmp_path):
    """Random order 7 points behind, give or take as much: how much of that the noise takes is not known."""
    rules = RULES | {("random", "probability"): (0.75, None)}
    study = planted(tmp_path, sizes=(4,), rules=rules, arms={}, puzzles=100, nae=False, zebra=False, text=False)
    assert answers(report, study)["S3"] == "undecided"


def test_first_errors_are_judged_by_training(report, tmp_path):
    """All trainings together err where nothing could be deduced, one of them does not."""
    study = planted(tmp_path, sizes=(4,), nae=False, zebra=False, text=False)
    assert answers(report, study)["S8"] == "yes"
    for path in study.glob("runs/*-s0/decodings.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        moved = [row | {"first_errors": {"3": sum(row["first_errors"].values())}} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in moved))
    assert answers(report, study)["S8"] == "undecided"


def test_a_bound_never_shows_that_a_loss_is_worse(report, tmp_path, monkeypatch):
    for loss, said in ((2.6, "undecided"), (2.1, "yes")):
        monkeypatch.setitem(PI, "mdm-text", (None, loss))
        study = planted(tmp_path / said, sizes=(), nae=False, zebra=False)
        assert answers(report, study)["S16"] == said


def test_shares_stand_over_what_they_cost(made):
    study, _ = made
    page = (study / "report.html").read_text()
    for number in ("T1", "T2", "T3", "T6"):
        assert "NFE 26.0" in table(page, f"{number}. "), number
    assert "5.7 times the MDM's training FLOPs" in Markup(page).unescape()


def table(page, start):
    """The first table of a page whose caption starts so."""
    return page.split(f'<p class="caption">{start}', 1)[1].split("</table>")[0]


def test_orders_that_do_not_help(report, tmp_path):
    arms = ARMS | {"arm-solver": ("solver", 0.5)}
    found = answers(report, planted(tmp_path, sizes=(4,), arms=arms, nae=False, zebra=False, text=False))
    assert (found["S6"], found["S7"]) == ("no", "yes")


def test_one_training_says_nothing_of_trainings(report, tmp_path):
    found = answers(report, planted(tmp_path, sizes=(4,), seeds=(0,), nae=False, zebra=False))
    assert {found[k] for k in ("S6", "S7", "S15", "S16")} == {"undecided"}
    assert found["S1"] == "yes"


def test_unequal_steps_are_not_compared(report, tmp_path):
    study = planted(tmp_path, sizes=(4,), nae=False, zebra=False, text=False)
    for path in study.glob("runs/*arm-solver*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": 99}))
    assert answers(report, study)["S6"] == "undecided"


def test_formats_are_not_mixed(report, tmp_path):
    """Row by row in another format than the solver's order: nothing to compare it with."""
    study = planted(tmp_path, sizes=(4,), nae=False, zebra=False, text=False)
    for path in study.glob("runs/*arm-rows*/record.json"):
        record = json.loads(path.read_text())
        record["data"]["audit"]["format"] = "triples"
        path.write_text(json.dumps(record))
    results = report.compute(load_tasks(study))
    evidence = next(h["evidence"] for h in results["hypotheses"] if h["id"] == "S6")
    assert "ARM with order over ARM, random order" in evidence and "without" not in evidence


def test_smoke_decides_nothing(report, tmp_path):
    study = planted(tmp_path, sizes=(4,), scale="smoke", nae=False, zebra=False, text=False)
    results = report.compute(load_tasks(study))
    assert {h["answer"] for h in results["hypotheses"]} == {"undecided"}
    assert results["verdict"][0].startswith("Smoke")


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param("*/record.json", id="nothing finished"),
        pytest.param("*/decodings.jsonl", id="nothing decoded"),
        pytest.param("*/boards.json", id="no boards", marks=pytest.mark.slow),
        pytest.param("*/imbalance.jsonl", id="no imbalance", marks=pytest.mark.slow),
        pytest.param("*/config.yaml", id="no configuration", marks=pytest.mark.slow),
        pytest.param("*mdm*/*", id="no diffusion"),
        pytest.param("*arm-*/*", id="no autoregressive model", marks=pytest.mark.slow),
    ],
)
def test_what_is_missing_is_said(report, tmp_path, spoil, undrawn):
    study = planted(tmp_path, sizes=(4,), seeds=(0, 1), puzzles=20, snapshots=(1, 2))
    for path in study.glob(f"runs/{spoil}"):
        path.unlink()
    page = report.main(study).read_text()
    runs = len(json.loads((study / "plan.json").read_text())["runs"])
    assert f"of {runs} planned runs compared" in page
    if not spoil.startswith(("*/config", "*arm-")):
        assert "Not available" in page


def test_nine_by_nine_alone(report, tmp_path, undrawn):
    study = planted(tmp_path, sizes=(9,), seeds=(0,), puzzles=20, nae=False, zebra=False, text=False)
    page = report.main(study).read_text()
    assert "Sudoku 9×9" in page and "T3" in page and "no zebra run was decoded" in page


def test_outcomes_that_do_not_fit_are_refused():
    row = {"puzzles": 3, "solved": 2, "outcomes": "c0"}
    assert outcomes(row).tolist() == [True, True, False]
    with pytest.raises(UserError, match="do not fit its 3 of 3"):
        outcomes(row | {"solved": 3})
    with pytest.raises(UserError, match="of 20"):
        outcomes(row | {"puzzles": 20})


def test_corrupt_boards_are_named(report, tmp_path):
    study = planted(tmp_path, sizes=(4,), seeds=(0,), puzzles=20, nae=False, zebra=False, text=False)
    (study / "runs/sudoku-4x4-mdm-s0/boards.json").write_text("[{")
    with pytest.raises(UserError, match=r"sudoku-4x4-mdm-s0/boards.json:1: not JSON"):
        report.main(study)


def test_no_such_study(report, tmp_path):
    with pytest.raises(UserError, match="no such study"):
        report.main(tmp_path / "nowhere")


def test_names_of_cells_and_contenders(tmp_path):
    decoded = Decoded(load_tasks(planted(tmp_path, seeds=(0,), puzzles=20)), {})
    assert [decoded.title(c) for c in decoded.cells("sudoku")] == ["Sudoku 4×4", "Sudoku 6×6"]
    assert decoded.title("nae-sat") == "NAE-SAT 8 latents, 24 observations"
    labels = [decoded.label(c) for c in decoded.in_cell("sudoku-4x4")]
    assert labels[:3] == ["ARM with order", "ARM without order", "ARM, random order"]
    assert labels[3] == "MDM, random order" and labels[-1] == "MDM, the solver's order"
