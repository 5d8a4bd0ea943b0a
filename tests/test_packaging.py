"""What is built from the checkout: wheel and sdist are complete, say what was tested, and start where they can run."""

from __future__ import annotations

import email.message
import email.parser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from paths import ROOT, python_path

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BUILD = "import setuptools.build_meta as b; print(b.build_sdist('dist'), b.build_wheel('dist'), sep='\\n')"
# What a checkout holds besides the sources, and no distribution does.
LEFT_OUT = (
    ".git",
    ".venv",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    ".coverage*",
    "demo_out",
    "scale_out",
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist and the wheel of a copy of the checkout."""
    copy = tmp_path_factory.mktemp("build") / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (copy / "dist").mkdir()
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "absent from the `packages` configuration" not in done.stderr
    sdist, wheel = done.stdout.split()[-2:]
    return copy / "dist" / sdist, copy / "dist" / wheel


def sources(*folders: str) -> set[str]:
    """The files of folders of the checkout, relative to it."""
    found = {path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {
        path.as_posix() for path in found if not re.search(r"__pycache__|\.\w+_cache|\.hypothesis", path.as_posix())
    }


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_package_and_nothing_else(dist: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(dist[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == sources("har_pipeline")
    assert {
        "har_pipeline/py.typed",
        "har_pipeline/__init__.pyi",
        "har_pipeline/evaluation/data/ucf101_groups.csv",
    } <= names


def test_the_sdist_holds_all_that_its_tests_read(dist: tuple[Path, Path]) -> None:
    with tarfile.open(dist[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = sources("har_pipeline", "tests", "docs", "pipelines", "benchmarks", "data_manifests", ".ci")
    files = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", "pyproject.toml", "setup.py"}
    assert sorted((wanted | files) - names) == []


def test_the_description_has_no_links_that_lead_nowhere_on_an_index_page(dist: tuple[Path, Path]) -> None:
    description = str(metadata(dist[1]).get_payload())
    assert metadata(dist[1])["Description-Content-Type"] == "text/markdown"
    assert "har extract manifest.csv store.zarr" in description
    assert re.findall(r"\]\((?!https?:)[^)]*\)", description) == []
    assert re.findall(r"<img[^>]*src=\"(?!https?:)[^>]*>", description) == []
    assert "docs/cli.md" in description


def test_classifiers_and_python_versions_are_those_of_the_compatibility_page(dist: tuple[Path, Path]) -> None:
    """Only what ran is declared: docs/compatibility.md is what `make compat` printed."""
    page = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    ran = set(re.findall(r"^\| (3\.\d+)[.\d]* \|.*\| passed \|", page, flags=re.MULTILINE))
    declared = {name.rpartition(" :: ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    assert declared == ran
    assert f">={min(ran, key=lambda name: int(name[2:]))}" == PROJECT["requires-python"]
    systems = {name for name in PROJECT["classifiers"] if name.startswith("Operating System")}
    assert systems == {"Operating System :: POSIX :: Linux", "Operating System :: MacOS"}


WINDOWS = "import sys; sys.platform = 'win32'; sys.argv = {argv}; {start}"
REFUSAL = "har_pipeline needs Linux or macOS, for its decode processes; on Windows use it in WSL 2"


@pytest.mark.parametrize("argv", ["['-m', 'models']", "[r'C:\\\\py\\\\Scripts\\\\har.exe', 'models']", "['/bin/har']"])
def test_windows_is_refused_with_a_line_where_the_command_starts(argv: str) -> None:
    code = WINDOWS.format(argv=argv, start="from har_pipeline.cli import main; main()")
    done = subprocess.run([sys.executable, "-c", code], env=python_path(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {REFUSAL}\n")


def test_windows_is_refused_with_an_exception_where_a_program_imports_the_package() -> None:
    start = "\ntry:\n    import har_pipeline\nexcept ImportError as error:\n    print(error)"
    code = WINDOWS.format(argv="['mine.py']", start=start)
    done = subprocess.run([sys.executable, "-c", code], env=python_path(), capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"{REFUSAL}\n", "")


def test_an_installed_wheel_needs_no_checkout(dist: tuple[Path, Path], tmp_path: Path) -> None:
    """From another folder: the data files are found, and the command runs."""
    with zipfile.ZipFile(dist[1]) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "from har_pipeline.evaluation.categories import read_groups; print(len(read_groups('ucf101').group_of));"
        "import har_pipeline; print(har_pipeline.__file__)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["101", str(tmp_path / "site/har_pipeline/__init__.py")]
