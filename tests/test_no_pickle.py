"""Nothing that the package reads is unpickled: every call that could do so says that it must not."""

from __future__ import annotations

import ast
from pathlib import Path

import har_pipeline

PACKAGE = Path(har_pipeline.__file__).parent

# What runs code of what it reads, and the argument that keeps a reader from it.
FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "torch.jit.load",
    "joblib.load",
    "dill.load",
    "dill.loads",
}
FORBIDDEN |= {"marshal.load", "marshal.loads", "shelve.open", "yaml.load", "pd.read_pickle", "eval", "exec"}
GUARDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def test_no_reader_unpickles() -> None:
    guarded = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name, where = ast.unparse(node.func), f"{path.relative_to(PACKAGE)}:{node.lineno}"
            assert name not in FORBIDDEN, f"{where}: {name}"
            if name in GUARDED:
                argument, wanted = GUARDED[name]
                given = {one.arg: one.value for one in node.keywords}.get(argument)
                assert isinstance(given, ast.Constant), f"{where}: {name} without {argument}"
                assert given.value is wanted, f"{where}: {name} without {argument}={wanted}"
                guarded += 1
    assert guarded >= 3, "the names of the readers have changed"
