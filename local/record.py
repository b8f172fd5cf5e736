"""`python -m local record`: runs `make demo` in a terminal of our own and draws what it printed as an animated SVG.

The picture holds the run's own text, at the run's own moments (shown faster, and it says how much). A run that fails is not
drawn. The terminal knows only what rich writes: colours, carriage return, line feed, cursor up, erase line.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from local.worker_process import ROOT

PICTURE: Final = ROOT / "docs" / "images" / "demo.svg"
COLUMNS: Final = 100
"""Wide enough for every line of the demo."""
SPEED: Final = 2.0
"""How many times faster than the run the picture is."""
_FRAME_SECONDS: Final = 0.25
"""Least time between two states of the screen that are drawn: a progress bar changes ten times a second."""
_CELL: Final = (8.4, 19)
"""Width and height of a character in pixels, at a font of 14."""
_UNFINISHED: Final = re.compile(r"\x1b(\[[?\d;]*)?\Z")
_TOKEN: Final = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")
_STYLES: Final = {
    "2": "dim",
    "31": "red",
    "32": "green",
    "33": "yellow",
    "36": "cyan",
    "1;36": "cyan",
    "38;5;237": "rail",  # a progress bar: the part that is left
    "38;5;197": "bar",  # the part that is done
    "38;5;70": "green",  # a whole one
}
"""A colour of rich, and the class it has in the picture. Others are drawn as plain text."""
_STYLE: Final = """
  text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace }
  text { fill: #1f2328; white-space: pre }
  .page { fill: #f6f8fa; stroke: #d1d9e0 } .dim { fill: #59636e } .red { fill: #cf222e } .green { fill: #1a7f37 }
  .yellow { fill: #7d4e00 } .cyan { fill: #0550ae } .rail { fill: #d1d9e0 } .bar { fill: #bc4c00 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .page { fill: #151b23; stroke: #3d444d } .dim { fill: #9198a1 } .red { fill: #ff7b72 }
    .green { fill: #3fb950 } .yellow { fill: #d29922 } .cyan { fill: #79c0ff } .rail { fill: #3d444d } .bar { fill: #f0883e }
  }
  .gone { visibility: hidden }
  @keyframes before { from, to { visibility: hidden } }
  @keyframes while { from, to { visibility: visible } }
  @media (prefers-reduced-motion: reduce) { g { animation: none !important } }
"""

Span = tuple[str, str]
"""A text and its class."""
Line = tuple[Span, ...]
Frame = tuple[float, list[Line]]
"""Seconds since the start, and what the screen showed then."""


def register(subparsers: Any) -> None:
    """Add the subcommand `record`."""
    parser = subparsers.add_parser(
        "record",
        help="run the demo and draw what it printed",
        description="Run `python -m local demo` and write what it printed, at the moments it did, as an animated SVG.",
    )
    parser.add_argument("--output", type=Path, default=PICTURE, help="where to write it (default: docs/images/demo.svg)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    code, frames = recorded([sys.executable, "-m", "local", "demo"])
    if code != 0:
        print(f"error: the demo ended with {code}; nothing was written. See what it says: make demo", file=sys.stderr)
        return 1
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(drawn("make demo", frames))
    print(f"written: {arguments.output}")
    return 0


@dataclass(slots=True)
class Screen:
    """The lines that a program has written, as a terminal would show them."""

    lines: list[list[Span]] = field(default_factory=lambda: [[]])
    row: int = 0
    style: str = ""
    returned: bool = False

    def feed(self, text: str) -> None:
        """Take output of the program; no control sequence may be cut in two."""
        for token in _TOKEN.finditer(text):
            if token[2] == "m":
                self.style = _STYLES.get(token[1], "")
            elif token[2] == "A":
                self.row = max(0, self.row - int(token[1] or 1))
            elif token[2] == "K":
                self.lines[self.row] = []
            elif token[0] == "\n":
                self.row += 1
                self.lines.extend([] for _ in range(self.row + 1 - len(self.lines)))
            elif not token[2] and token[0] != "\r":
                self.lines[self.row] = [*([] if self.returned else self.lines[self.row]), (token[0], self.style)]
            self.returned = token[0] == "\r" or (self.returned and token[2] is not None)

    def shown(self) -> list[Line]:
        """Every line, as a value."""
        return [tuple(line) for line in self.lines]


def recorded(command: list[str]) -> tuple[int, list[Frame]]:
    """Run a command in a terminal; its exit code, and the states of its screen by seconds since the start."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, cwd=ROOT, env=environment)
    os.close(its)
    screen, decoder, frames, rest = Screen(), codecs.getincrementaldecoder("utf-8")(), [], ""
    begun = time.monotonic()
    try:
        while piece := _read(ours):
            text = rest + decoder.decode(piece)
            cut = _UNFINISHED.search(text)
            rest = cut[0] if cut else ""
            screen.feed(text.removesuffix(rest))
            frames.append((time.monotonic() - begun, screen.shown()))
        return process.wait(), frames
    finally:
        os.close(ours)
        process.kill()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


def drawn(title: str, frames: list[Frame]) -> str:
    """The picture: each line in each of its states, visible while the run showed it. Without animation: the last screen."""
    states = _states(frames)
    rows = max(row for row, _, _, _ in states) + 1
    wide, high = round((COLUMNS + 4) * _CELL[0]), (rows + 3) * _CELL[1]
    seconds = frames[-1][0]
    drawn_lines = "\n".join(_group(*state) for state in states)
    about = f"{seconds:.0f} seconds, shown {SPEED:g} times as fast"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="img">\n'
        f"<title>{escape(title)}: {about}</title>\n"
        f"<!-- Written by `python -m local record`, from a run that ended with 0. -->\n"
        f'<style>{_STYLE}</style>\n<rect class="page" x="0.5" y="0.5" width="{wide - 1}" height="{high - 1}" rx="8"/>\n'
        f'<text x="16" y="{_CELL[1] + 4}" xml:space="preserve">$ {escape(title)}'
        f'<tspan class="dim">    {about}</tspan></text>\n'
        f"{drawn_lines}\n</svg>\n"
    )


def _states(frames: list[Frame]) -> list[tuple[int, Line, float, float | None]]:
    """Each row's states: row, line, from when, until when; None for the last one, which stays."""
    found: list[tuple[int, Line, float, float | None]] = []
    showing: dict[int, tuple[Line, float]] = {}
    for at, (seconds, lines) in enumerate(frames):
        last = at == len(frames) - 1
        for row in range(max(len(lines), len(showing))):
            line = lines[row] if row < len(lines) else ()
            before, since = showing.get(row, ((), 0.0))
            if line == before or (before and not last and seconds - since < _FRAME_SECONDS):
                continue
            if before:
                found.append((row, before, since, seconds))
            showing[row] = (line, seconds)
    found += [(row, line, since, None) for row, (line, since) in showing.items() if line]
    return sorted(found, key=lambda state: (state[0], state[2]))


def _group(row: int, line: Line, since: float, until: float | None) -> str:
    spans = "".join(f'<tspan class="{kind}">{escape(text)}</tspan>' if kind else escape(text) for text, kind in line)
    begin = since / SPEED
    if until is None:
        look = f'style="animation:before {begin:.2f}s backwards"'
    else:
        look = f'class="gone" style="animation:while {until / SPEED - begin:.2f}s {begin:.2f}s"'
    return f'<g {look}><text x="16" y="{(row + 2) * _CELL[1] + 8}" xml:space="preserve">{spans}</text></g>'
