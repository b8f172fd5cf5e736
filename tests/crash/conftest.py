"""`--cycles N` runs each crash test N times: `make torture`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--cycles", type=int, default=1, help="how often each crash test is run")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat the tests that take part: those with a `cycle`."""
    if "cycle" in metafunc.fixturenames:
        metafunc.parametrize("cycle", range(metafunc.config.getoption("--cycles")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless the crash tests are to run over and over."""
    if config.getoption("--cycles") == 1:
        left_out = [item for item in items if item.get_closest_marker("torture")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the crash tests printed: the counts of each, once more where they can be read together."""
    passed = [report for report in terminalreporter.getreports("passed") if "tests/crash" in report.nodeid]
    lines = [line for report in passed for line in report.capstdout.splitlines() if "acknowledged" in line or "gap" in line]
    if lines:
        terminalreporter.section(f"{len(passed)} crash tests passed")
        terminalreporter.write_line("\n".join(sorted(lines)))
