"""What is shipped is what is in the tree, and the tree keeps its own rules.

``python tests/test_packaging.py dist/recplug-*.whl`` checks a wheel that was built elsewhere.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = {"plugins": "recplug.plugins", "adapters": "recplug.adapters"}
IGNORED = {"__pycache__", ".git", ".venv", "build", "dist", "runs", "gallery", "_build", "saved", "log"}
# Import names that differ from the distribution's name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "torch_geometric": "torch-geometric",
    "typing_extensions": "typing-extensions",
}


def files(*rooms: str) -> list[str]:
    """Paths of the files that belong to the project: what git tracks or would track, else what is there."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *rooms]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        found = listed.stdout.strip("\0").split("\0")
    else:
        starts = [ROOT / room for room in rooms] or [ROOT]
        inside = [path for start in starts for path in [start, *start.rglob("*")]]
        found = [path.relative_to(ROOT).as_posix() for path in inside]
        found = [p for p in found if not any(x in IGNORED or x.endswith(".egg-info") for x in p.split("/"))]
    return sorted(path for path in found if (ROOT / path).is_file())


def python_files(*rooms: str) -> list[str]:
    return [path for path in files(*rooms) if path.endswith(".py")]


def module_name(path: str) -> str:
    """``plugins/nn/__init__.py`` to ``recplug.plugins.nn.__init__``."""
    first, _, rest = path.removesuffix(".py").partition("/")
    return ".".join([ROOMS.get(first, first), *rest.split("/")])


def imports(path: str, *, top_level: bool = False) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, by statement or by ``import_module``, with the line.

    Args:
        path: relative to the repository.
        top_level: only what runs unconditionally when the module is imported.
    """
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=path)
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")[: -node.level]
                base = ".".join([*package, *filter(None, [node.module])])
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def compare(wheel: Path) -> None:
    """Assert that a wheel holds the tree's files, all of them, unchanged, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    shipped = {name: data for name, data in content.items() if ".dist-info/" not in name}
    tree = {module_path(path): (ROOT / path).read_bytes() for path in files(*ROOMS)}
    assert sorted(tree.keys() - shipped.keys()) == [], "in the tree, not in the wheel: complete pyproject.toml"
    assert sorted(shipped.keys() - tree.keys()) == [], "in the wheel, not in the tree"
    assert [name for name in tree if tree[name] != shipped[name]] == []
    metadata = {name.split(".dist-info/")[1]: data for name, data in content.items() if ".dist-info/" in name}
    for name in PROJECT["project"]["license-files"]:
        assert f"licenses/{name}" in metadata
    for name in PROJECT["project"]["scripts"]:
        assert f"\n{name} = ".encode() in metadata["entry_points.txt"]
    for name in PROJECT["project"]["entry-points"]["recplug.plugins"]:
        assert f"\n{name} = ".encode() in metadata["entry_points.txt"]


def module_path(path: str) -> str:
    """``plugins/nn/graph.py`` to where it lies in the wheel."""
    first, _, rest = path.partition("/")
    return f"{ROOMS[first].replace('.', '/')}/{rest}"


def test_the_wheel_holds_the_tree(tmp_path):
    source = tmp_path / "source"  # a copy: a build folder left in the tree would put removed modules into the wheel
    for path in files(*ROOMS, "pyproject.toml", "README.md", "LICENSE"):
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path)
    shutil.copytree(ROOT / "src" / "recplug", source / "src" / "recplug", symlinks=True)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    built = subprocess.run(command, cwd=source, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    (wheel,) = tmp_path.glob("recplug-*.whl")
    compare(wheel)


def test_every_folder_with_code_is_a_package():
    folders = {path.rpartition("/")[0] for path in files(*ROOMS) if path.endswith("/__init__.py")}
    homeless = [path for path in python_files(*ROOMS) if path.rpartition("/")[0] not in folders]
    assert homeless == [], "a folder with code needs an __init__.py"


def test_an_editor_finds_the_package_under_its_name():
    for room in ROOMS:
        link = ROOT / "src" / "recplug" / room
        assert link.resolve() == ROOT / room, "src/recplug holds relative links to the top-level folders"


def test_plugins_know_no_host():
    wrong = [
        f"{path}:{line} imports {module}"
        for path in python_files("plugins")
        for module, line in imports(path)
        if within(module, "recbole") or within(module, "recplug.adapters")
    ]
    assert wrong == []


def test_nothing_imports_the_quick_start_of_recbole():
    wrong = [
        f"{path}:{line}"
        for path in python_files()
        for module, line in imports(path)
        if within(module, "recbole.quick_start")
    ]
    assert wrong == [], "recbole.quick_start imports ray"


def test_top_level_imports_are_core_requirements():
    core = {re.split(r"[<>=!;\[ ]", line)[0].lower() for line in PROJECT["project"]["dependencies"]}
    wrong = [
        f"{path}:{line} imports {module}"
        for path in python_files(*ROOMS)
        for module, line in imports(path, top_level=True)
        for first in [module.split(".")[0]]
        if first not in sys.stdlib_module_names | {"recplug"} and DISTRIBUTIONS.get(first, first) not in core
    ]
    assert wrong == [], "an extra is imported inside the function that uses it; a core requirement is declared"


def test_no_file_names_a_place_on_one_machine():
    place = re.compile(rb"(?<![\w./-])/(work|root|home/\w+)/")
    wrong = []
    for path in files():
        data = (ROOT / path).read_bytes()
        if b"\0" in data[:8192]:
            continue
        for hit in place.finditer(data):
            line = data.count(b"\n", 0, hit.start()) + 1
            wrong.append(f"{path}:{line} {hit.group()!r}")
    assert wrong == []


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
    print(f"{Path(sys.argv[1]).name}: as the tree")
