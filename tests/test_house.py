"""The rules of the house: rooms, arrows, shared names, one home a job, no machine's paths, clean tools."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = ("aaclip", "clipse", "edgeglass", "videoclip")
THINGS = {
    "aaclip": ("detector",),
    "clipse": ("retriever",),
    "edgeglass": ("aligner", "vlm"),
    "videoclip": ("classifier",),
}
"""The rooms of what a person holds, in each system that is built."""
BUILT = tuple(THINGS)


def source_of(package: str) -> Path:
    return ROOT / "packages" / package / "src" / ("clip_common" if package == "common" else package)


def rooms_of(system: str) -> tuple[str, ...]:
    """Rooms, lowest first: a file imports from its own room and from the rooms before it."""
    return (
        "config",
        "data",
        "models",
        "report",
        *THINGS[system],
        "scoring",
        "serving",
        "training",
        "series",
        "released",
        "cli",
    )


def room_of(file: Path, system: str) -> str:
    return file.relative_to(source_of(system)).parts[0].removesuffix(".py")


def sources() -> Iterator[Path]:
    """Every module of every package."""
    for package in ("common", *SYSTEMS):
        yield from sorted(source_of(package).rglob("*.py"))


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def imports_of(file: Path) -> set[str]:
    """Full names of all modules, and of all names in them, that a file imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_modules(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports_of(file)}


def definitions_of(file: Path) -> set[str]:
    """Names defined at the top of a file, and `Class.method` of its classes."""
    names: set[str] = set()
    for node in tree_of(file).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{item.name}" for item in node.body if isinstance(item, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def where(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


# ---- arrows and rooms ----


@pytest.mark.parametrize("package", ["common", *SYSTEMS])
def test_no_package_imports_a_system_other_than_itself(package):
    others = {system for system in SYSTEMS if system != package}
    for file in source_of(package).rglob("*.py"):
        assert not imported_modules(file) & others, f"{where(file)} imports a sibling system"


@pytest.mark.parametrize("system", BUILT)
def test_a_system_has_the_rooms_of_the_house_and_no_others(system):
    for path in source_of(system).iterdir():
        if path.name.startswith("__") or path.name in ("configs", "py.typed"):
            continue
        assert room_of(path, system) in rooms_of(system), f"{where(path)} is no room: {', '.join(rooms_of(system))}"
        assert path.is_dir() or path.name == "config.py", f"{where(path)}: a room is a folder"


@pytest.mark.parametrize("system", BUILT)
def test_arrows_between_rooms_point_one_way(system):
    order = rooms_of(system)
    for file in source_of(system).rglob("*.py"):
        if room_of(file, system).startswith("__"):  # names of the package, each loaded at its first use
            continue
        allowed = order[: order.index(room_of(file, system)) + 1]
        for name in imports_of(file):
            package, _, inside = name.partition(".")
            room = inside.partition(".")[0]
            assert package != system or room not in order or room in allowed, f"{where(file)} imports {name}"


@pytest.mark.parametrize("folder", ["losses", "metrics"])
def test_losses_and_metrics_stand_on_torch_and_numpy_alone(folder):
    for file in (source_of("common") / "arrays.py", *(source_of("common") / folder).rglob("*.py")):
        foreign = imported_modules(file) - set(sys.stdlib_module_names) - {"torch", "numpy", "scipy", "clip_common"}
        assert not foreign, f"{where(file)} imports {foreign}"
        own = {name for name in imports_of(file) if name.startswith("clip_common.")}
        known = (folder, "reporting", "arrays", "threads")
        assert all(name.split(".")[1] in known for name in own), f"{where(file)} imports {own}"


def test_only_training_knows_lightning():
    for file in sources():
        assert "training" in file.parts or "lightning" not in imported_modules(file), f"{where(file)} imports lightning"


def test_only_the_command_line_prints():
    for file in sources():
        if "cli" in file.parts:
            continue
        # the released projects' flags are options of a command too
        assert "released" in file.parts or "typer" not in imported_modules(file), f"{where(file)} imports typer"
        calls = (node.func for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call))
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), f"{where(file)} prints"


@pytest.mark.parametrize("system", BUILT)
def test_only_some_rooms_open_run_folders(system):
    for file in source_of(system).rglob("*.py"):
        if re.search(r"\bRun\.(open|create|resume)\(", file.read_text(encoding="utf-8")):
            rooms = (*THINGS[system], "scoring", "training", "series", "released")
            assert room_of(file, system) in rooms, f"{where(file)} opens a run folder"


# ---- shared names ----

SHARED = {
    "training/experiment.py": ("train", "Trained"),
    "scoring/evaluation.py": ("evaluate", "Evaluation"),
    "scoring/score.py": ("score", "Scored"),
    "data/check.py": ("check", "CheckReport"),
    "cli/main.py": ("app",),
    "cli/data.py": ("data",),
}
"""The same job has the same name in every system."""


@pytest.mark.parametrize("system", BUILT)
@pytest.mark.parametrize("place", SHARED)
def test_the_same_job_has_the_same_name_in_every_system(system, place):
    file = source_of(system) / place
    assert file.is_file(), f"{where(file)} is missing"
    missing = set(SHARED[place]) - definitions_of(file)
    assert not missing, f"{where(file)} does not define {missing}"


@pytest.mark.parametrize(("system", "thing"), [(system, thing) for system in BUILT for thing in THINGS[system]])
def test_what_a_person_holds_is_loaded_and_saved_by_the_same_names(system, thing):
    name = {"vlm": "VLM"}.get(thing, thing.capitalize())
    missing = {name, f"{name}.from_pretrained", f"{name}.save_pretrained"} - definitions_of(
        source_of(system) / thing / f"{thing}.py"
    )
    assert not missing


@pytest.mark.parametrize("package", ["common", *SYSTEMS])
def test_no_two_public_classes_of_a_package_share_a_name(package):
    homes: dict[str, Path] = {}
    for file in source_of(package).rglob("*.py"):
        for node in tree_of(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in homes, f"{node.name} is in {where(homes[node.name])} and in {where(file)}"
                homes[node.name] = file


# ---- one home a job ----

HOMES = {
    "pictures": (
        r"\b(?:Image|Pillow)\.open\(|exif_transpose\(|\bimread\(|\bdecode_image\(",
        ("packages/common/src/clip_common/images.py", "packages/common/src/clip_common/synthetic/"),
    ),
    "sounds": (
        r"(?:from|import) soundfile",
        ("packages/common/src/clip_common/sounds.py", "packages/common/src/clip_common/synthetic/"),
    ),
    "safetensors": (r"(?:from|import) safetensors", ("packages/common/src/clip_common/tensors.py",)),
    "comma-separated values": (
        r"\bcsv\.(?:reader|writer|DictReader|DictWriter)\(",
        ("packages/common/src/clip_common/tables.py", "packages/common/src/clip_common/runs/table.py"),
    ),
    "files of torch.save": (
        r"\btorch\.load\(",
        ("packages/common/src/clip_common/tensors.py", "packages/common/src/clip_common/training/checkpoint.py"),
    ),
    "the hub and transformers": (
        r"\b(?:from|import) (?:huggingface_hub|transformers|sentence_transformers)\b",
        ("packages/common/src/clip_common/backbones/",),
    ),
}
"""What is read or written in one place: how it shows in code, and where it may."""


@pytest.mark.parametrize("job", HOMES)
def test_a_job_has_one_home(job):
    pattern, homes = HOMES[job]
    for file in sources():
        if not where(file).startswith(homes):
            found = re.search(pattern, file.read_text(encoding="utf-8"))
            assert not found, f"{where(file)}: {found.group()}; {job}: only {' and '.join(homes)}"


PRIVATE = {
    "_destroy": "torch has no public way to take a kernel back",
    "_foreach_lerp_": "torch has no public way to average many tensors at once",
    "_logger_connector": "Lightning has no public way to read what a step logged",
    "_replace": "public in a named tuple, whatever its name says",
    "_asdict": "public in a named tuple, whatever its name says",
}
"""Private attributes of others that are touched all the same, and why."""


def test_no_file_touches_a_private_attribute_of_others():
    for file in sources():
        tree = tree_of(file)
        own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_self(node.value)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr) and not is_self(node.value):
                assert node.attr in own or node.attr in PRIVATE, f"{where(file)}, line {node.lineno}: .{node.attr}"
        private = [name for name in imports_of(file) if re.match(r"_[a-z]", name.rpartition(".")[2])]
        assert not private, f"{where(file)} imports {private}"


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_no_file_is_longer_than_one_idea():
    for file in tracked_files():
        if file.suffix == ".py":
            lines = len(file.read_text(encoding="utf-8").splitlines())
            assert lines <= 400, f"{where(file)} has {lines} lines: which two ideas are they?"


def test_contributing_says_where_each_behaviour_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| `([\w/.]+\.py)` \| `([\w.]+)` \|$", text, flags=re.MULTILINE)
    assert len(rows) >= 25
    for behaviour, path, name in rows:
        file = ROOT / "packages" / path
        assert file.is_file(), f"{behaviour}: {path} is missing"
        assert name in definitions_of(file), f"{behaviour}: {path} does not define {name}"


def test_every_link_between_pages_leads_somewhere():
    for page in tracked_files():
        if page.suffix == ".md":
            for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
                assert target.startswith("http") or (page.parent / target).exists(), f"{where(page)} links to {target}"


# ---- packages ----

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
OPTIONAL = {"common": {"pyarrow", "scipy", "tensorboard", "wandb"}, "clipse": {"pyarrow"}}


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


def test_no_file_names_an_absolute_path_of_a_machine_or_an_index_host():
    # in parts, so that this file names none either
    homes, working, mirrors = "|".join(("home", "Users", "root")), "work", "|".join(("pypi", "wheels"))
    home = rf"/(?:{homes})/[a-z]|(?<![\w.])/{working}/|/opt/(?:{mirrors})"
    host = r"https?://[^\s\"')]*(?:/simple\b|/whl\b|pypi\.org|pythonhosted)"
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
