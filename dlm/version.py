"""Which code decides a trained number, as one hash: runs of different code are never compared by accident."""

import ast
import hashlib
from functools import cache
from pathlib import Path

import torch

PACKAGE = Path(__file__).parent
DECISIVE = (
    *("attention.py", "layout.py", "backbone.py", "augment.py", "optimisation.py", "lm.py", "dual.py", "noise.py"),
    *("metrics.py", "build.py", "callbacks.py", "fit.py"),
    *("process/*.py", "likelihood/*.py", "data/module.py", "data/sampler.py"),
)


@cache
def code_version() -> str:
    """12 hex digits of SHA-256 over the syntax trees, docstrings and comments aside, of the modules that a trained
    weight or its held-out loss depends on, and torch's version. What the data are, their fingerprint says.
    """
    digest = hashlib.sha256(torch.__version__.split("+")[0].encode())
    for pattern in DECISIVE:
        for path in sorted(PACKAGE.glob(pattern)):
            digest.update(f"{path.relative_to(PACKAGE)}:{meaning(path.read_text(encoding='utf-8'))}\0".encode())
    return digest.hexdigest()[:12]


def meaning(source: str) -> str:
    """The syntax tree of a module without its docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[documented:]
    return ast.dump(tree)
