"""The structure that the docs describe, read off the source: who imports whom, which library is called where, and names."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("worker", "publisher", "local")
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 50
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "base"}

SEAMS: dict[str, set[str]] = {
    "google.cloud.storage": {"worker.replica.bucket"},
    "google.cloud.pubsub_v1": {"publisher.client", "worker.operations.pubsub"},
    "peewee": {
        "worker.database.comparison",
        "worker.database.connections",
        "worker.database.models",
        "worker.database.receipts",
        "worker.database.rejections",
        "worker.database.bulk",
        "worker.database.bulk_postgresql",
        "worker.database.copying",
        "worker.database.driver_errors",
        "worker.operations.move",
        "worker.operations.provider_restore",
        "worker.operations.doctor.postgresql",
        "worker.database.instances",
        "worker.database.postgresql",
        "worker.database.sqlite",
        "worker.stores.postgresql",
        "worker.database.schema",
        "worker.events.catalog",
        "worker.events.declaration",
        "worker.events.users",
        "worker.ingest.writer",
    },
    "google.auth.jwt": {"worker.console.iap", "worker.ingest.http.tokens"},
    "google.auth.crypt": {"worker.ingest.http.tokens"},
    "playhouse": {"worker.database.schema"},
    "opentelemetry": {"worker.telemetry.tracing", "publisher.tracing"},
    "prometheus_client": {"worker.telemetry.metrics", "worker.telemetry.scrape"},
    "functions_framework": {"worker.ingest.http.app", "publisher.gateway"},
    "httptools": {"publisher.connections"},
}
"""Who alone in the worker and the publisher may import a foreign library, besides the migrations."""


def files(*packages: str) -> list[Path]:
    """The source files of these packages."""
    return sorted(file for package in packages for file in (ROOT / package).rglob("*.py"))


def name_of(file: Path) -> str:
    """The dotted name of a module."""
    dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


SOURCES = {name_of(file): file for file in files(*PACKAGES)}
TREES = {name: ast.parse(file.read_text()) for name, file in SOURCES.items()}
WORKER = sorted(name for name in SOURCES if name.startswith("worker.") and ".migrations." not in name)


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module or name a tree imports, dotted; inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative imports hide who imports whom"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function's docstring takes."""
    first = function.body[0]
    return (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0


def test_the_rooms_hold() -> None:
    """No room imports a higher one; `make check` runs the same contract."""
    assert _contracts(ROOT) == 0


def test_a_planted_import_is_caught(tmp_path: Path) -> None:
    """A lower room that imports a higher one, and a message that knows its door, break the contract."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert _contracts(tmp_path) == 0
    for module, planted in (
        ("worker/lease/lease.py", "import worker.ingest.messages"),
        ("worker/ingest/writer.py", "import worker.ingest.http.app"),
        ("publisher/push.py", "import worker.config"),
    ):
        file = tmp_path / module
        clean = file.read_text()
        file.write_text(f"{clean}\n{planted}\n")
        assert _contracts(tmp_path) == 1, planted
        file.write_text(clean)


def _contracts(folder: Path) -> int:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": "."}, check=False, capture_output=True
    ).returncode


def test_there_are_no_cycles() -> None:
    """Imports can be followed to their end."""
    left = {module: set(imported(TREES[module])) & set(WORKER) - {module} for module in WORKER}
    while left:
        free = {module for module, needs in left.items() if not needs & left.keys()}
        assert free, f"these import each other: {sorted(left)}"
        left = {module: needs for module, needs in left.items() if module not in free}


@pytest.mark.parametrize(
    "module", [name for name in sorted(SOURCES) if not name.startswith("local") and ".migrations." not in name]
)
def test_foreign_libraries_have_one_seam(module: str) -> None:
    """Their errors are translated where they are called, and nowhere else."""
    for library, allowed in SEAMS.items():
        uses = any(name == library or name.startswith(library + ".") for name in imported(TREES[module]))
        assert not uses or module in allowed, f"{module} imports {library}"


@pytest.mark.parametrize("file", files(*PACKAGES, "tests", "bench"), ids=name_of)
def test_no_module_is_too_long_or_vaguely_named(file: Path) -> None:
    """At 600 lines a module is asked whether it is one idea, and its name says what is in it."""
    assert len(file.read_text().splitlines()) <= MODULE_LINES_MAX or file.is_relative_to(ROOT / "tests")
    assert file.stem not in VAGUE


@pytest.mark.parametrize("module", [name for name in sorted(SOURCES) if ".migrations." not in name])
def test_no_function_is_too_long(module: str) -> None:
    """Fifty lines, its docstring not counted, is what can be read at once; a migration is a list of tables."""
    long = [
        f"{function.name}: {length}"
        for function in functions(TREES[module])
        if (length := (function.end_lineno or 0) - function.lineno + 1 - docstring_lines(function)) > FUNCTION_LINES_MAX
    ]
    assert long == []


@pytest.mark.parametrize("file", [file for file in files("tests") if file.stem.startswith("test_")], ids=name_of)
def test_every_test_says_what_it_holds(file: Path) -> None:
    """A test's docstring is the sentence that its failure disproves."""
    mute = [
        function.name
        for function in functions(ast.parse(file.read_text()))
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert mute == []


def test_there_is_no_module_state() -> None:
    """Outside its constants a worker module holds nothing: functions-framework may load a module twice."""
    mutable = [
        f"{module}: {ast.unparse(node)}"
        for module in WORKER
        for node in TREES[module].body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp)
        and not (isinstance(node, ast.AnnAssign) and "Final" in ast.unparse(node.annotation))
    ]
    assert mutable == []
    assert not [module for module in WORKER for node in ast.walk(TREES[module]) if isinstance(node, ast.Global)]
