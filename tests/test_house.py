"""The house keeps its own rules: arrows point one way, no machine's path or index host in a file, tools are clean."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ("aaclip", "clipse", "edgeglass", "videoclip")


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def imported_modules(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", ["common", *SYSTEMS])
def test_no_package_imports_a_system_other_than_itself(package):
    others = {system for system in SYSTEMS if system != package}
    for file in (ROOT / "packages" / package / "src").rglob("*.py"):
        assert not imported_modules(file) & others, f"{file} imports a sibling system"


# What a distribution is called where its module is called otherwise.
MODULES = {
    "clip-common": "clip_common",
    "huggingface-hub": "huggingface_hub",
    "open-clip-torch": "open_clip",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "sentence-transformers": "sentence_transformers",
}

# Imported where it is needed, with an error that says what to install: no package that lacks it is the poorer.
OPTIONAL = {"common": {"scipy", "tensorboard", "wandb"}}


def project_of(package: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]


def requirements_of(package: str) -> list[str]:
    project = project_of(package)
    extras = project.get("optional-dependencies", {}).values()
    return [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]


@pytest.mark.parametrize("package", ["common", *SYSTEMS])
def test_a_package_declares_what_it_imports(package):
    folder = ROOT / "packages" / package
    names = {re.match(r"[\w-]+", requirement).group() for requirement in requirements_of(package)}
    declared = {MODULES.get(name, name) for name in names}
    own = {path.name for path in (folder / "src").iterdir()}
    for file in (folder / "src").rglob("*.py"):
        unknown = imported_modules(file) - set(sys.stdlib_module_names) - declared - own - OPTIONAL.get(package, set())
        assert not unknown, f"{file.relative_to(ROOT)} imports {unknown}, which the package does not declare"


@pytest.mark.parametrize("package", ["common", *SYSTEMS])
def test_every_requirement_has_a_lower_bound_and_siblings_move_in_lockstep(package):
    for requirement in requirements_of(package):
        if requirement.startswith("clip-common"):
            assert requirement.endswith(f"=={project_of('common')['version']}"), requirement
        else:
            assert ">=" in requirement, requirement


def test_only_training_knows_lightning():
    for file in (ROOT / "packages").glob("*/src/**/*.py"):
        if "training" not in file.relative_to(ROOT).as_posix():
            assert "lightning" not in imported_modules(file), f"{file} imports lightning"


def test_no_file_names_an_absolute_path_of_a_machine_or_an_index_host():
    # in parts, so that this file names none either
    homes, working, mirrors = "|".join(("home", "Users", "root")), "work", "|".join(("pypi", "wheels"))
    home = rf"/(?:{homes})/[a-z]|(?<![\w.])/{working}/|/opt/(?:{mirrors})"
    host = r"https?://[^\s\"')]*(?:/simple\b|pypi\.org|pythonhosted)"
    for file in tracked_files():
        if file == Path(__file__) or file.suffix in {".png", ".safetensors", ".gz"}:
            continue
        text = file.read_text(encoding="utf-8")
        found = re.search(f"{home}|{host}", text)
        assert not found, f"{file.relative_to(ROOT)}: {found.group()}"


def test_no_lock_file_weights_or_large_file_is_tracked():
    for file in tracked_files():
        assert file.name != "uv.lock"
        assert file.stat().st_size < 1_000_000 or "tiny" in file.parts, f"{file.relative_to(ROOT)} is large"


@pytest.mark.parametrize("command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_the_tools_are_clean(command):
    arguments = command if command == ["mypy"] else [*command, "."]
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
