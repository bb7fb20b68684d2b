"""Who may import whom, read from the sources: lower layers never import higher ones."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "dlm").rglob("*.py"))
}
ORDER = [
    ["dlm", "dlm.errors", "dlm.files", "dlm.trajectory"],
    [
        "dlm.process",
        "dlm.attention",
        "dlm.layout",
        "dlm.backbone",
        "dlm.noise",
        "dlm.augment",
        "dlm.optimisation",
        "dlm.device",
    ],
    [
        "dlm.likelihood",
        "dlm.sampling",
        "dlm.metrics",
        "dlm.data",
        "dlm.toy",
    ],
    ["dlm.lm", "dlm.dual"],
    [
        "dlm.run",
        "dlm.scoring",
        "dlm.callbacks",
        "dlm.config",
        "dlm.build",
        "dlm.train",
        "dlm.evaluate",
        "dlm.measure",
        "dlm.sample",
        "dlm.llada",
        "dlm.decode",
        "dlm.report",
        "dlm.tuning",
        "dlm.study",
        "dlm.laboratory",
        "dlm.experiment",
        "dlm.speed",
        "dlm.version",
        "dlm.fit",
        "dlm.tracking",
        "dlm.workspace",
        "dlm.harness",
    ],
]
REPORTING = ["dlm.report", "dlm.trajectory"]  # beside the layers: they read files
ENTRY_POINTS = {
    "dlm.config",
    "dlm.build",
    "dlm.fit",
    "dlm.tracking",
    "dlm.train",
    "dlm.evaluate",
    "dlm.sample",
    "dlm.decode.__main__",
    "dlm.decode.imbalance",
    "dlm.study.compose",
    "dlm.study.cost",
    "dlm.study.corpora",
    "dlm.experiment",
    "dlm.speed",
}
STUDIES = sorted((ROOT / "experiments").glob("*/*.py"))
REPORTS = [path for path in STUDIES if path.stem.split("_")[0] == "report"]


def imports(path):
    """Every module that a file names in an import, at any depth; `from dlm import lm` names dlm.lm."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in SOURCES else node.module for name in names}
    return found


def room(module):
    """dlm.data.module lives in dlm.data; the command line of a package stands with the other commands."""
    return "dlm.experiment" if module.endswith(".__main__") else ".".join(module.split(".")[:2])


def within(module, package):
    return module == package or module.startswith(package + ".")


REPORT_MODULES = [m for m in SOURCES if any(within(m, package) for package in REPORTING)]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def test_every_module_has_a_place():
    assert {room(m) for m in SOURCES} == {*LEVEL, *REPORTING}


@pytest.mark.parametrize("module", [m for m in SOURCES if room(m) in LEVEL])
def test_lower_layers_do_not_import_higher_ones(module):
    for imported in filter(lambda m: within(m, "dlm"), imports(SOURCES[module])):
        assert room(imported) in LEVEL, f"{module} imports {imported}"
        assert LEVEL[room(imported)] <= LEVEL[room(module)], f"{module} imports {imported}"


def test_processes_and_backbone_know_torch_and_nothing_else():
    allowed = {"torch", "jaxtyping", "math", "typing", "collections", "dataclasses"}
    for module, path in SOURCES.items():
        package = "dlm.process" if within(module, "dlm.process") else "dlm.backbone"
        if within(module, package) or module in ("dlm.attention", "dlm.layout"):
            for imported in imports(path):
                own = within(imported, package) or imported in ("dlm.errors", "dlm.attention", "dlm.layout")
                assert own or imported.split(".")[0] in allowed, f"{module} imports {imported}"


def test_data_knows_no_process_and_no_model():
    for module, path in SOURCES.items():
        if within(module, "dlm.data") and not module.endswith(".__main__"):
            ours = {m for m in imports(path) if within(m, "dlm")}
            allowed = ("dlm.errors", "dlm.noise", "dlm.layout")
            assert all(within(m, "dlm.data") or m in allowed for m in ours), f"{module} imports {ours}"


def test_metrics_and_noise_stand_alone():
    assert not {m for m in imports(SOURCES["dlm.metrics"]) if within(m, "dlm")}
    assert not {m for m in imports(SOURCES["dlm.noise"]) if within(m, "dlm")}


def test_only_entry_points_know_hydra():
    for module, path in SOURCES.items():
        knows = {m.split(".")[0] for m in imports(path)} & {"hydra", "omegaconf"}
        assert not knows or module in ENTRY_POINTS, f"{module} imports {knows}"


@pytest.mark.parametrize("path", [SOURCES[m] for m in REPORT_MODULES] + REPORTS, ids=lambda p: p.stem)
def test_reports_never_reach_torch(path):
    """Neither directly nor through another module of the package."""
    seen, waiting = set(), [path]
    while waiting:
        for imported in imports(waiting.pop()):
            if imported in SOURCES and imported not in seen:
                waiting.append(SOURCES[imported])
            seen.add(imported)
    heavy = {m for m in seen if m.split(".")[0] in ("torch", "lightning", "torchmetrics", "hydra", "omegaconf")}
    assert not heavy, f"{path} reaches {heavy}"


def test_studies_measure_and_report_with_the_package_alone():
    """A study is a plan (report.py) or a laboratory (measure.py besides), perhaps divided into measure_*.py and
    report_*.py; beyond dlm it imports its own neighbours of the same kind, no other study and no test."""
    tests = {"tests", "experiments", *(p.stem for p in (ROOT / "tests").glob("*.py"))}
    for path in STUDIES:
        kind = path.stem.split("_")[0]
        assert kind in ("measure", "report"), f"{path}: a study has measure*.py and report*.py alone"
        local = {m for m in imports(path) if m.split(".")[0] in tests | {p.stem for p in STUDIES}}
        own = {p.stem for p in path.parent.glob(f"{kind}_*.py")}
        assert local <= own, f"{path} imports {local - own}"


def test_reports_import_without_torch():
    """The same by doing it: an interpreter in which torch cannot be imported."""
    code = f"import sys; import {', '.join(REPORT_MODULES)}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", [*SOURCES.values(), *STUDIES, *(ROOT / "hydra_plugins").glob("*.py")], ids=str)
def test_no_error_is_swallowed(path):
    """Exceptions are caught by name, never wholesale."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {name.id for name in caught if isinstance(name, ast.Name)}
            assert node.type is not None and not names & {"Exception", "BaseException"}, f"{path}:{node.lineno}"


def test_rooms_stay_small():
    assert not [path for path in SOURCES.values() if "utils" in path.stem]
    assert not [path for path in SOURCES.values() if len(path.read_text().splitlines()) > 400]
