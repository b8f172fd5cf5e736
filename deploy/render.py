"""Fills in ${NAME} in a template from the environment: `python3 deploy/render.py deploy/service.yaml`.

Lines from `# with NAME` to `# end` are left out if NAME is empty, and those from `# without NAME` if it is not. It needs no
package, as it runs before anything is installed. A name without a value and a value that could be anything but
one plain word in YAML are errors: nothing that is half filled in may be deployed.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

PLAIN = re.compile(r"[A-Za-z0-9@:/._,-]*")
"""What accounts, addresses, numbers and lists of them are made of. Nothing in it can end a quoted word of YAML."""


def render(template: str, values: Mapping[str, str]) -> str:
    """The template with its names filled in, without the parts whose name is empty.

    Raises:
        ValueError: A name has no value, or a value has characters that are not plain.
    """
    for sense, name in set(re.findall(r"# (with|without) (\w+)\n", template)):
        if (sense == "with") != bool(values.get(name)):
            template = re.sub(rf"(?ms)^\s*# {sense} {name}\n.*?^\s*# end\n", "", template)
    body = re.sub(r"(?m)^\s*#.*\n", "", template)  # comments speak of ${...} as well
    names = set(re.findall(r"\$\{(\w+)\}", body))
    if missing := sorted(names - values.keys()):
        raise ValueError(f"no value for {', '.join(missing)}: set them in the environment")
    for name in sorted(names):
        if not PLAIN.fullmatch(values[name]):
            raise ValueError(f"{name} is {values[name]!r}: only letters, digits and @:/._,- are taken")
    return re.sub(r"\$\{(\w+)\}", lambda name: values[name[1]], body)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: deploy/render.py FILE, with its values in the environment")
    try:
        sys.stdout.write(render(Path(sys.argv[1]).read_text(), os.environ))
    except (OSError, ValueError) as error:
        sys.exit(f"render.py: {error}")
