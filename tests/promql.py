"""Just enough of PromQL to check deploy/: what an expression names.

It refuses what it does not know, so that a file never passes by being misread.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

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
