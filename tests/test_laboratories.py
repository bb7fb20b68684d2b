"""Every laboratory from measuring to its page, and what the command says to mistakes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from dlm import config, experiment, laboratory
from dlm.errors import UserError
from dlm.laboratory import Laboratory
from dlm.report.measurements import Measurements
from dlm.study.command import Command, load

LABORATORIES = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/measure.py"))


def at(tmp_path, name, *more):
    return [f"name={name}", "scale=smoke", f"output_dir={tmp_path}", *more]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.parametrize("name", LABORATORIES)
def test_from_measuring_to_the_page(name, outputs, called, monkeypatch):
    """The smoke scale: measured once, reported, not measured again; the page is whole and says the verdict."""
    code = laboratory.fingerprint(ROOT / "experiments" / name)
    monkeypatch.setattr(laboratory, "fingerprint", lambda folder: code)  # someone may edit while the tests run
    out = called(experiment.main, *at(outputs, name))
    directory = outputs / name / "smoke"
    assert "not yet measured" in out and "measured in" in out and str(directory / "report.html") in out
    html = (directory / "report.html").read_text()
    results = json.loads((directory / "results.json").read_text())
    lines = load(ROOT / "experiments" / name / "report.py").verdict_lines(results)
    assert lines and all(line in out for line in lines)
    assert html.rstrip().endswith("</html>") and "Verdict" in html and "smoke" in html.lower()
    assert html.count("<figure") == html.count("<svg") == len(list((directory / "figures").glob("*.png"))) > 0
    assert "http-equiv" not in html and '<script src="' not in html and '<img src="http' not in html
    assert list(directory.glob("*.csv"))
    measured = {p: p.stat().st_mtime_ns for p in directory.glob("*.json") if p.name != "results.json"}
    again = called(experiment.main, *at(outputs, name))
    assert "measured before" in again and "measured in" not in again
    assert measured == {p: p.stat().st_mtime_ns for p in measured}


@pytest.mark.parametrize("name", LABORATORIES)
def test_every_scale_has_the_keys_that_are_asked_for(name):
    """laptop and smoke, each complete and of the right types, and a README beside them."""
    folder = ROOT / "experiments" / name
    types = load(folder / "measure.py").SETTINGS
    scales = {path.stem: laboratory.checked(path, types) for path in folder.glob("*.yaml")}
    assert {"laptop", "smoke"} <= set(scales) and (folder / "README.md").is_file()
    assert scales["laptop"] != scales["smoke"]


@pytest.mark.parametrize("name", LABORATORIES)
def test_a_plan_measures_nothing(name, tmp_path, called):
    out = called(experiment.main, *at(tmp_path, name, "stage=plan"))
    assert "not yet measured" in out and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", LABORATORIES)
def test_what_means_nothing_here_is_refused(name, tmp_path, refused):
    """Options of plans: one line each, before any work."""
    for option in ("arms=md4", "only=md4", "workers=2", "minutes=3", "limit=9", "launcher=slurm", "any_code=true"):
        assert f"is a laboratory and has no {option.split('=')[0]}" in refused(
            experiment.main, *at(tmp_path, name, option)
        )
    assert "no scale 'huge'" in refused(experiment.main, f"name={name}", "scale=huge")
    assert "its stage is one of" in refused(experiment.main, *at(tmp_path, name, "stage=train"))
    assert "nothing measured" in refused(experiment.main, *at(tmp_path, name, "stage=report"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", LABORATORIES)
def test_the_page_alone_needs_no_torch(name, outputs, tmp_path, called):
    """`python experiments/<name>/report.py DIRECTORY` where torch cannot be imported; a missing or a corrupt file
    is one line that names it."""
    if not (outputs / name / "smoke" / "laboratory.json").is_file():
        called(experiment.main, *at(outputs, name))
    directory = tmp_path / "smoke"
    shutil.copytree(outputs / name / "smoke", directory)
    (directory / "report.html").unlink()
    (tmp_path / "torch.py").write_text("raise ImportError('the report reached torch')")
    script = ROOT / "experiments" / name / "report.py"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}

    def report():
        command = [sys.executable, str(script), str(directory)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = report()
    assert done.returncode == 0, done.stderr
    assert (directory / "report.html").is_file()
    module = load(script)
    measured = [p for p in directory.glob("*.json") if p.name not in ("results.json", "laboratory.json")]
    assert measured
    for file in [directory / "laboratory.json", *measured]:
        whole = file.read_text()
        for broken, word in ((whole[: len(whole) // 2], "not JSON"), (None, "does not exist")):
            file.unlink() if broken is None else file.write_text(broken)
            with pytest.raises(UserError, match=rf"{file.name}.*{word}") as error:
                module.main(directory)
            assert "\n" not in str(error.value)
        file.write_text(whole)
    with pytest.raises(UserError, match="not a directory"):
        module.main(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", LABORATORIES)
def test_a_file_of_another_kind_is_no_measurement(name, outputs, tmp_path, called):
    """Each measured file replaced by an empty object: the line says which key it lacks."""
    if not (outputs / name / "smoke" / "laboratory.json").is_file():
        called(experiment.main, *at(outputs, name))
    directory = tmp_path / "smoke"
    shutil.copytree(outputs / name / "smoke", directory)
    report = load(ROOT / "experiments" / name / "report.py")
    for file in sorted(set(directory.glob("*.json")) - {directory / "results.json"}):
        whole = file.read_text()
        file.write_text("{}")
        with pytest.raises(UserError, match=rf"{file.name}: has no '"):
            report.main(directory)
        file.write_text(whole)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A laboratory that measures how often it was asked, with a neighbour of its own."""
    folder = tmp_path / "experiments" / "tiny"
    folder.mkdir(parents=True)
    (folder / "measure_neighbour.py").write_text("ANSWER = 42\n")
    (folder / "measure.py").write_text(
        "from measure_neighbour import ANSWER\n"
        "from dlm.files import write_json\n"
        "SETTINGS = {'rate': float, 'count': int, 'seeds': list}\n"
        "def measure(settings, directory):\n"
        "    if settings['count'] < 0: raise ValueError('negative')\n"
        "    write_json(directory / 'found.json', settings | {'answer': ANSWER})\n"
    )
    (folder / "report.py").write_text(
        "from dlm.report.measurements import Measurements\n"
        "def main(directory):\n"
        "    m = Measurements(directory)\n"
        "    return m.write('<p>', m.json('found.json', 'answer'))\n"
        "def verdict_lines(results): return [f\"answer {results['answer']} of {results['seeds']}\"]\n"
    )
    (folder / "smoke.yaml").write_text("rate: 1\ncount: 3\nseeds: [0, 1]\n")
    real = config.bundled
    monkeypatch.setattr(config, "bundled", lambda name: folder.parent if name == "experiments" else real(name))
    return folder


def test_measured_again_when_settings_or_code_have_changed(tiny, tmp_path, called):
    """The record tells; a report of outdated measurements says so and is drawn all the same."""
    arguments = at(tmp_path / "out", "tiny")
    assert "answer 42 of [0, 1]" in called(experiment.main, *arguments)
    assert "measured before" in called(experiment.main, *arguments)
    assert "answer 42 of [3, 5]" in called(experiment.main, *arguments, "seeds=5,3")
    assert "of other settings" in called(experiment.main, *arguments, "stage=report")
    assert "measured in" in called(experiment.main, *arguments)
    (tiny / "measure_neighbour.py").write_text("ANSWER = 7  # another\n")
    out = called(experiment.main, *arguments, "stage=report")
    assert "of other code" in out and "answer 42" in out
    assert "answer 7 of [0, 1]" in called(experiment.main, *arguments)
    assert "measure_neighbour" not in sys.modules and str(tiny) not in sys.path


def test_a_failed_measurement_leaves_no_record(tiny, tmp_path, called, refused):
    """What is there may then be of two minds: the report refuses it."""
    arguments = at(tmp_path / "out", "tiny")
    called(experiment.main, *arguments)
    (tiny / "smoke.yaml").write_text("rate: 1\ncount: -3\nseeds: [0]\n")
    with pytest.raises(ValueError, match="negative"):
        called(experiment.main, *arguments)
    assert "nothing measured" in refused(experiment.main, *arguments, "stage=report")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate: 1\ncount: 3\nseeds: [0]\ncuont: 3\n", "unknown key 'cuont'; there are: rate, count, seeds"),
        ("rate: 1\nseeds: [0]\n", "has no 'count'"),
        ("rate: fast\ncount: 3\nseeds: [0]\n", "rate is 'fast', expected float"),
        ("rate: 1\ncount: true\nseeds: [0]\n", "count is True, expected int"),
        ("rate: [1\n", "not YAML"),
        ("- rate\n", "expected keys and values"),
    ],
)
def test_mistakes_in_a_scales_file(tiny, tmp_path, refused, text, message):
    (tiny / "smoke.yaml").write_text(text)
    error = refused(experiment.main, *at(tmp_path, "tiny"))
    assert message in error and str(tiny / "smoke.yaml") in error


def test_seeds_need_a_laboratory_that_draws(tiny, tmp_path, refused):
    assert "seeds are whole numbers" in refused(experiment.main, *at(tmp_path, "tiny", "seeds=one"))
    measure = tiny / "measure.py"
    measure.write_text(measure.read_text().replace(", 'seeds': list", ""))
    (tiny / "smoke.yaml").write_text("rate: 1\ncount: 3\n")
    assert "draws nothing at random" in refused(experiment.main, *at(tmp_path, "tiny", "seeds=1"))


def test_an_unwritable_place_is_one_line(tiny, tmp_path, refused):
    (tmp_path / "file").write_text("")
    assert "cannot write to" in refused(experiment.main, "name=tiny", "scale=smoke", f"output_dir={tmp_path}/file")


def test_the_record_must_be_whole(tiny, tmp_path, called):
    called(experiment.main, *at(tmp_path / "out", "tiny"))
    directory = tmp_path / "out" / "tiny" / "smoke"
    assert Measurements(directory).smoke and "tiny/report.py" in Measurements(directory).again
    assert Laboratory(Command(name="tiny", scale="smoke", output_dir=str(tmp_path / "out"))).state == "measured"
    record = yaml.safe_load((directory / "laboratory.json").read_text())
    record.pop("code")
    (directory / "laboratory.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="has no 'code'"):
        Measurements(directory)
