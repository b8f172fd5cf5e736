"""Just enough of YAML and PromQL to check deploy/: rules read strictly, and what an expression names.

Both refuse what they do not know, so that a file never passes by being misread.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FUNCTIONS = {
    *("rate", "increase", "changes", "histogram_quantile", "absent", "time", "vector", "min_over_time", "max_over_time"),
    *("sum", "max", "min", "avg", "count"),
}
"""Functions and aggregations that may be used; a misspelt one is an error."""
WORDS = {"by", "and", "or", "unless", "ignoring", "on", "offset"}
GROUPING = {"by", "ignoring", "on"}
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"[^"\\]*")
      | (?P<range>\[(?:\d+[smhd](?::\d+[smhd])?|\$__rate_interval)\])
      | (?P<duration>\d+[smhd]\b)
      | (?P<number>\d+(?:\.\d+)?)
      | (?P<name>[a-zA-Z_]\w*)
      | (?P<operator>==|!=|>=|<=|=~|!~|[-+*/><=(){},])
    )""",
    re.VERBOSE,
)


@dataclass
class Named:
    """What an expression names: metrics with the labels they are selected by, and labels that it groups by."""

    metrics: dict[str, set[str]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)


def tokens(expression: str) -> Iterator[tuple[str, str]]:
    """Kind and text of each token.

    Raises:
        ValueError: Something in it is none.
    """
    at = 0
    text = expression.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"cannot be read from here: {text[at:]}")
        assert match.lastgroup is not None
        yield match.lastgroup, match[match.lastgroup]
        at = match.end()


def named(expression: str) -> Named:
    """What an expression names.

    Raises:
        ValueError: It is not balanced, or calls what is no known function.
    """
    found, read = Named(), [("", ""), *tokens(expression), ("", "")]
    opened = [""]  # what each open bracket is: an expression's `(`, a selector's `{`, or a grouping's `by`
    for (_, before), (kind, text), (_, following) in zip(read, read[1:], read[2:], strict=False):
        if text in ("(", "{"):
            if opened[-1] in ("{", *GROUPING):
                raise ValueError(f"{text} in a list of labels")
            opened.append(before if before in GROUPING else text)
        elif text in (")", "}"):
            if (opened.pop() == "{") != (text == "}") or not opened:
                raise ValueError("the brackets do not match")
        elif kind == "range" and before not in (*found.metrics, ")", "}"):
            raise ValueError(f"{text} is the range of nothing")
        elif kind == "name":
            _name(found, text, following, opened[-1])
    if opened != [""]:
        raise ValueError("a bracket is left open")
    return found


def _name(found: Named, text: str, following: str, within: str) -> None:
    if within == "{":
        found.metrics[next(reversed(found.metrics))].add(text)
    elif within in GROUPING:
        found.grouped.add(text)
    elif text in WORDS:
        return
    elif following != "(" and following not in GROUPING:
        labels = found.metrics.pop(text, set())  # the latest is the last, for the selector that may follow
        found.metrics[text] = labels
    elif text not in FUNCTIONS:
        raise ValueError(f"{text} is no function that is known here")


def rules(text: str) -> Any:
    """Read YAML of block mappings, block lists, plain and double-quoted scalars, and folded ones (`>-`).

    Raises:
        ValueError: It has anything else.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    value, rest = _block(lines, _indent(lines[0]))
    if rest:
        raise ValueError(f"what is this? {rest[0]}")
    return value


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _block(lines: list[str], indent: int) -> tuple[Any, list[str]]:
    return _list(lines, indent) if lines[0].lstrip().startswith("- ") else _mapping(lines, indent)


def _list(lines: list[str], indent: int) -> tuple[list[Any], list[str]]:
    found = []
    while lines and _indent(lines[0]) == indent and lines[0][indent:].startswith("- "):
        value, lines = _mapping([" " * (indent + 2) + lines[0][indent + 2 :], *lines[1:]], indent + 2)
        found.append(value)
    return found, lines


def _mapping(lines: list[str], indent: int) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {}
    while lines and _indent(lines[0]) == indent and not lines[0][indent:].startswith("- "):
        match = re.fullmatch(r"([a-zA-Z]\w*):(?: (.+))?", lines[0][indent:])
        if match is None or match[1] in found:
            raise ValueError(f"no `name: value`, or a second one of that name: {lines[0]}")
        lines = lines[1:]
        if match[2] == ">-":
            folded = []
            while lines and _indent(lines[0]) > indent:
                folded.append(lines[0].strip())
                lines = lines[1:]
            found[match[1]] = " ".join(folded)
        elif match[2] is None:
            if not lines or _indent(lines[0]) <= indent:
                raise ValueError(f"{match[1]} has no value")
            found[match[1]], lines = _block(lines, _indent(lines[0]))
        else:
            found[match[1]] = _scalar(match[2])
    return found, lines


def _scalar(text: str) -> str:
    quoted = re.fullmatch(r'"([^"\\]*)"', text)
    if quoted is not None:
        return quoted[1]
    if text[0] in "\"'[]{}&*!|>%@`#,?:-" or ": " in text or " #" in text:
        raise ValueError(f"quote this: {text}")
    return text
