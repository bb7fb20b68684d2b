"""The wheel holds all that the checkout has, and finds its configurations away from it."""

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

from dlm.study.command import Command
from dlm.study.plan import Plan

CODE = """
import importlib.util, pathlib
import hydra_plugins.process_launcher
import dlm
from dlm import config, train
here = pathlib.Path(dlm.__file__).parent
assert str(here).startswith({folder!r}), here
assert config.bundled("conf") == here / "conf" and config.bundled("experiments") == here / "experiments"
from hydra import compose, initialize_config_dir
with initialize_config_dir(str(config.bundled("conf")), version_base="1.3"):
    for method in sorted(p.stem for p in (here / "conf" / "method").glob("*.yaml")):
        cfg = compose("config", overrides=[f"method={{method}}", "data=toy", "hydra/launcher=process"])
        data = train.build_data(cfg)
        train.build_model(cfg, data.source.fingerprint, 1)
from dlm.study.command import Command
from dlm.study.plan import Plan
print(len(Plan(Command(name="super-data-learners", scale="smoke")).jobs), "jobs")
from dlm.laboratory import Laboratory
print("information is", Laboratory(Command(name="information", scale="smoke")).state)
"""


def sources(folder, *suffixes):
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.suffix in suffixes}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built in isolation, as a user's pip would: this needs the package index."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, cwd=folder)
    (path,) = folder.glob("dlm-*.whl")
    return path


@pytest.mark.slow
def test_nothing_is_left_out(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert sources("dlm", ".py") <= names and sources("hydra_plugins", ".py") <= names
    assert {f"dlm/{name}" for name in sources("conf", ".yaml")} <= names
    assert {f"dlm/{name}" for name in sources("experiments", ".yaml", ".py", ".md")} <= names
    assert {"dlm/conf/config.yaml", "dlm/process/masked.py", "dlm/data/text.py"} <= names
    strangers = {n for n in names if not n.startswith(("dlm/", "hydra_plugins/", "dlm-"))}
    assert not strangers and not [n for n in names if n.endswith((".ckpt", ".pyc")) or "outputs/" in n]


@pytest.mark.slow
def test_an_installed_package_finds_its_configurations(wheel, tmp_path):
    """Unpacked far from the checkout, in an interpreter that knows nothing of it."""
    folder = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(folder)
    away = tmp_path / "elsewhere"
    away.mkdir()
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(folder=str(folder))],
        cwd=away, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    jobs = len(Plan(Command(name="super-data-learners", scale="smoke", output_dir=str(tmp_path))).jobs)
    assert done.stdout.splitlines() == [f"{jobs} jobs", "information is missing"] and jobs > 5
    assert not list(away.iterdir()), "importing and composing write nothing"
