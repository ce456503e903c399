"""Imports point down one list, so that the package can be read from the top and never back."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jaxprobe

PACKAGE = Path(jaxprobe.__file__).parent
# A room (a folder, or a file of the package's own) may import from later ranks; rooms of one rank never import each
# other. docs/design has the same list with what each room holds.
RANKS = [
    ["__main__", "__init__"],
    ["cli"],
    ["worlds"],
    ["plan"],
    ["runs"],
    ["experiments"],
    ["report"],
    ["cost"],
    ["results"],
    ["extract"],
    ["probes", "models", "data"],
    ["settings"],
    ["host", "mesh"],
    ["html", "sites"],
    ["errors"],
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# The report reads result files only.
REPORT_MAY_USE = {"errors", "html", "host", "results", "report", "sites"}


def modules() -> dict[str, Path]:
    """Dotted name of every module, below jaxprobe -> its file."""
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def file_imports() -> Iterator[tuple[Path, Path]]:
    """(file, a file that it imports from), for both ways of writing an import."""
    known = modules()
    for path in known.values():
        for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} imports relatively"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                # The name may be a module, or something in one.
                inside = name.removeprefix("jaxprobe.")
                found = known.get(inside) or known.get(inside.rpartition(".")[0])
                if name.startswith("jaxprobe.") and found:
                    yield path, found


def imports() -> Iterator[tuple[Path, str, str]]:
    """(file, its room, the room that it imports from)."""
    for path, target in file_imports():
        yield path, path.with_suffix("").parts[0], target.with_suffix("").parts[0]


def test_every_room_has_a_rank():
    rooms = {path.with_suffix("").parts[0] for path in modules().values()}
    assert rooms <= set(RANK)


def test_no_file_name_stands_twice():
    names = Counter(path.name for path in modules().values() if path.name != "__init__.py")
    assert not [name for name, count in names.items() if count > 1]


def test_imports_point_down():
    found = list(imports())
    assert len(found) > 100
    wrong = [
        f"{path} imports {target}" for path, room, target in found if target != room and RANK[target] <= RANK[room]
    ]
    assert not wrong


def test_the_report_reads_result_files_only():
    assert not [
        f"{path}: {target}" for path, room, target in imports() if room == "report" and target not in REPORT_MAY_USE
    ]
