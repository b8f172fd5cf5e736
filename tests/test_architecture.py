"""The layering of docs and design, read off the source: who imports whom, and how long things may get."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("worker", "publisher", "local")
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 50
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "shared", "base"}

VALUES = {
    "worker.errors",
    "worker.envelope",
    "worker.group",
    "worker.outcome",
    "worker.pace",
    "worker.models",
    "worker.statements",
    "worker.transaction",
    "worker.lease_record",
    "worker.layout",
    "worker.doctor",
    "worker.drill",
    "worker.background",
    "worker.tally",
    "worker.agreement",
    "worker.claims",
    "worker.trace_context",
    "worker.child",
    "worker.gate",
    "worker.litestream_log",
    "worker.ltx",
    "worker.slots",
    "worker.observer",
    "worker.wording",
    "worker.places",
}
"""What every layer of the worker may import: values, formats, errors, what a message does, the gate, pieces of asyncio."""
ADAPTERS = {
    "worker.comparison",
    "worker.counts",
    "worker.database",
    "worker.writer",
    "worker.rejections",
    "worker.receipts",
    "worker.pubsub",
    "worker.litestream",
    "worker.gcs",
    "worker.sender",
    "worker.claim",
    "worker.identity",
}
"""Each knows one foreign thing. They do not import one another."""
DECIDERS = {"worker.lease", "worker.replica", "worker.replication", "worker.succession"}
"""Each decides one rule over interfaces of its own, and imports no adapter."""
COMPOSED = {
    "worker.access",
    "worker.bodies",
    "worker.intake",
    "worker.erasure",
    "worker.expiry",
    "worker.generation",
    "worker.restoring",
    "worker.retention",
    "worker.lease_commands",
    "worker.rejection_commands",
    "worker.checkpointing",
    "worker.replay_point",
    "worker.undone",
    "worker.restore_commands",
    "worker.checkpoints",
    "worker.replay",
    "worker.drill_commands",
    "worker.doctor_store",
    "worker.doctor_litestream",
    "worker.doctor_machine",
    "worker.doctor_queue",
    "worker.operators",
    "worker.tracing",
    "worker.metrics",
    "worker.families",
    "worker.scrape",
    "worker.app",
    "worker.config",
}
"""Parts made of the layers below, and settings."""
WIRING = {
    "worker.supervisor",
    "worker.parts",
    "worker.rejection_cli",
    "worker.replica_cli",
    "worker.checkpoint_cli",
    "worker.replay_cli",
    "worker.subscription_options",
    "worker.drill_cli",
    "worker.recovery",
    "worker.recover_cli",
    "worker.doctor_cli",
    "worker.service_options",
    "worker.smoke_cli",
    "worker.doctor_quick",
    "worker.tables",
    "worker.cli",
    "worker.__main__",
    "worker.telemetry",
}
"""Only these see everything; nobody imports them but each other."""

SHARED = {"publisher.message", "publisher.connections", "publisher.listening", "publisher.values"}
"""What the worker takes from the publisher: the message format, and the server's side of a connection with its socket."""

PURE: dict[str, set[str]] = {
    "worker.errors": set(),
    "worker.envelope": {"worker.errors"},
    "worker.lease_record": {"worker.errors"},
    "worker.layout": {"worker.errors"},
    "worker.doctor": set(),
    "worker.doctor_machine": {"worker.doctor"},
    "worker.drill": set(),
    "worker.group": {"worker.envelope", "worker.errors", "publisher.message"},
    "worker.models": set(),
    "worker.outcome": {"worker.group", "publisher.message"},
    "worker.transaction": {
        "worker.envelope",
        "worker.errors",
        "worker.group",
        "worker.models",
        "worker.outcome",
        "worker.statements",
        "publisher.message",
    },
    "worker.statements": {"worker.models"},
    "worker.sender": {"worker.claims", "worker.errors"},
    "worker.claims": {"worker.errors"},
    "worker.access": {"worker.errors"},
    "worker.background": set(),
    "worker.tally": set(),
    "worker.pubsub": {"worker.errors"},
    "worker.config": {"worker.errors", "worker.places", "publisher.values"},
    "worker.places": {"publisher.values"},
    "publisher.values": set(),
    "worker.telemetry": {"worker.trace_context"},
    "worker.trace_context": set(),
    "worker.litestream_log": set(),
    "worker.wording": set(),
    "publisher.message": set(),
}
"""Modules that say all they import of ours."""
SEAMS: dict[str, set[str]] = {
    "google.cloud.storage": {"worker.gcs"},
    "google.cloud.pubsub_v1": {"publisher.client", "worker.pubsub"},
    "peewee": {
        "worker.comparison",
        "worker.database",
        "worker.models",
        "worker.receipts",
        "worker.rejections",
        "worker.statements",
        "worker.writer",
    },
    "google.auth.jwt": {"worker.sender"},
    "google.auth.crypt": {"worker.sender"},
    "playhouse": {"worker.database"},
    "opentelemetry": {"worker.tracing", "publisher.tracing"},
    "prometheus_client": {"worker.families", "worker.scrape"},
    "functions_framework": {"worker.app", "publisher.gateway"},
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


def ours(module: str) -> set[str]:
    """Which of our modules a module imports."""
    return {name for name in imported(TREES[module]) if name in SOURCES} - {"worker", "publisher", "local", module}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function's docstring takes."""
    first = function.body[0]
    return (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0


def test_every_module_has_a_layer() -> None:
    """A new module is put into one above, and a removed one is taken out."""
    layers = (VALUES, ADAPTERS, DECIDERS, COMPOSED, WIRING)
    assert set().union(*layers) == set(WORKER)
    assert sum(map(len, layers)) == len(WORKER)


@pytest.mark.parametrize("module", PURE)
def test_the_core_imports_only_values(module: str) -> None:
    """Core is decided and tested without a process, a bucket or a database."""
    assert ours(module) <= PURE[module]


@pytest.mark.parametrize("module", sorted(ADAPTERS))
def test_adapters_do_not_know_each_other(module: str) -> None:
    """Each can be replaced without touching another."""
    assert ours(module) <= VALUES | SHARED


@pytest.mark.parametrize("module", sorted(DECIDERS))
def test_deciders_know_no_adapter(module: str) -> None:
    """The rules of the lease and of the acknowledgement stand on interfaces that a test can fake."""
    assert ours(module) <= VALUES


@pytest.mark.parametrize("module", sorted(set(WORKER) - WIRING))
def test_nobody_imports_the_wiring(module: str) -> None:
    """Dependencies point down: only the supervisor and the command line see the whole."""
    assert not ours(module) & WIRING


def test_there_are_no_cycles() -> None:
    """Imports can be followed to their end."""
    left = {module: ours(module) & set(WORKER) for module in WORKER}
    while left:
        free = {module for module, needs in left.items() if not needs & left.keys()}
        assert free, f"these import each other: {sorted(left)}"
        left = {module: needs for module, needs in left.items() if module not in free}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_packages_keep_apart(module: str) -> None:
    """The publisher stands alone; the worker shares the message format and the connections with it; neither needs local."""
    package = module.split(".")[0]
    found = ours(module)
    if package == "publisher":
        assert not [name for name in found if name.startswith(("worker", "local"))]
    elif package == "worker":
        assert {name for name in found if name.startswith(("publisher", "local"))} <= SHARED


@pytest.mark.parametrize(
    "module", [name for name in sorted(SOURCES) if not name.startswith(("local", "worker.migrations."))]
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


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_no_function_is_too_long(module: str) -> None:
    """Fifty lines, its docstring not counted, is what can be read at once."""
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
