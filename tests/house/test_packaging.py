"""What is shipped: the wheel is the source tree, two builds give the same bytes, installing touches nothing else."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from windlass.core.version import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
#: What a checkout holds besides the sources; none of it may be shipped.
NOT_SOURCES = (
    ".git", ".venv", ".build", "dist", ".hypothesis", ".ruff_cache", ".pytest_cache", ".import_linter_cache",
    "__pycache__", "*.egg-info", ".coverage", "node_modules",
)  # fmt: skip
EPOCH = "1700000000"


def build(source: Path, out: Path) -> dict[str, Path]:
    """Build both distributions; returns name -> file."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: path for path in out.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: what is compared must not change under an editor's hands meanwhile."""
    copy = tmp_path_factory.mktemp("copy") / "source"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_SOURCES), symlinks=True)
    return copy


@pytest.fixture(scope="module")
def first(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(source, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def wheel(first: dict[str, Path]) -> Path:
    return next(path for name, path in first.items() if name.endswith(".whl"))


@pytest.fixture(scope="module")
def sdist(first: dict[str, Path]) -> Path:
    return next(path for name, path in first.items() if name.endswith(".tar.gz"))


def package_files(source: Path) -> set[str]:
    package = source / "src" / "windlass"
    return {
        str(Path("windlass") / path.relative_to(package))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".pyc", ".pyo")
    }


def test_s119_two_builds_in_two_places_are_the_same_bytes(source: Path, first: dict[str, Path], tmp_path: Path) -> None:
    umask = os.umask(0o077)  # another person's machine: other modes, other place, other time
    try:
        elsewhere = tmp_path / "elsewhere" / "windlass"
        for path in sorted(source.rglob("*")):  # no copytree: it would keep times and modes
            if path.is_file():
                copy = elsewhere / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
                copy.chmod(copy.stat().st_mode | (path.stat().st_mode & 0o100))
        second = build(elsewhere, tmp_path / "dist")
    finally:
        os.umask(umask)
    assert sorted(second) == sorted(first) and len(first) == 2
    for name, path in first.items():
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(second[name].read_bytes()).digest(), name


def test_s119_the_wheel_is_the_source_tree(wheel: Path, source: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        assert shipped == package_files(source)
        different = [name for name in shipped if archive.read(name) != (source / "src" / name).read_bytes()]
    assert different == []
    needed = ("py.typed", "__init__.pyi", "core/models.json", "local/data/tiny-0.gguf", "local/data/tiny-0.json")
    assert {f"windlass/{name}" for name in needed} <= shipped


def test_s119_the_record_lists_every_file_with_its_digest(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        rows = [line.rsplit(",", 2) for line in archive.read(record).decode().splitlines()]
        assert {name for name, _, _ in rows} == names
        for name, digest, size in rows:
            if name != record:
                data = archive.read(name)
                wanted = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, int(size)) == (f"sha256={wanted}", len(data)), name


def test_the_metadata_says_what_pyproject_says(wheel: Path, source: Path) -> None:
    project = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        metadata = message_from_bytes(archive.read(f"{folder}/METADATA"))
        assert (
            archive.read(f"{folder}/entry_points.txt").split()
            == b"[console_scripts] windlass = windlass.apps.cli:main".split()
        )
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert (metadata["Name"], metadata["Version"]) == (project["name"], __version__)
    core = [row for row in metadata.get_all("Requires-Dist") or [] if "extra ==" not in row]
    assert sorted(core) == sorted(row.replace(" ", "") for row in project["dependencies"])
    readme = metadata.get_payload(decode=True)
    assert isinstance(readme, bytes) and readme.strip() == (source / "README.md").read_bytes().strip()


def test_s118_nothing_runs_at_startup_and_nothing_is_writable_by_others(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        modes = {info.filename: stat.S_IMODE(info.external_attr >> 16) for info in archive.infolist()}
    startup = ("sitecustomize", "usercustomize")
    assert [name for name in names if name.endswith((".pth", ".egg-link")) or name.startswith(startup)] == []
    assert [name for name in names if ".data/" in name or name.startswith("/") or ".." in name.split("/")] == []
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o022} == {}


def test_the_source_distribution_is_complete_and_holds_nothing_else(sdist: Path, source: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    names = {member.name.split("/", 1)[1] for member in members if "/" in member.name}
    assert {f"src/{name}" for name in package_files(source)} <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml", "requirements-dev.txt"} <= names
    assert any(name.startswith("tests/") for name in names), "distributors run the tests"
    unwanted = [
        name for name in names if set(name.split("/")) & {".venv", ".git", "__pycache__", ".hypothesis", "dist"}
    ]
    assert unwanted == []
    assert [member.name for member in members if not (member.isfile() or member.isdir())] == []


def test_s118_an_installed_wheel_works_and_importing_it_touches_nothing(
    wheel: Path, source: Path, tmp_path: Path
) -> None:
    target, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), str(wheel)], check=True, timeout=300)
    assert list(target.rglob("*.pth")) == []
    environ = {"PYTHONPATH": str(target), "PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        return done.stdout.strip()

    python = (sys.executable, "-W", "error", "-c")
    assert run(*python, "import sys; print([name for name in sys.modules if 'windlass' in name])") == "[]"
    script = (
        "import threading, windlass; print(windlass.__file__); windlass.Agent('echo'); print(threading.active_count())"
    )
    assert run(*python, script).split() == [str(target / "windlass" / "__init__.py"), "1"]
    assert run(str(target / "bin" / "windlass"), "--version") == f"windlass {__version__}"
    assert run(sys.executable, "-m", "windlass", "--version") == f"windlass {__version__}"
    checked = "from windlass.local.embedded import embedded_model as m; m().verify(); print(m().profile.name)"
    assert run(*python, checked) == "tiny-0"
    assert list(home.rglob("*")) == []
