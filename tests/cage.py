"""A container's confinement without an engine: a root of its own that is read-only, two writable folders, no root user.

Namespaces do it: with root's rights where the tests run as root, and otherwise in a user namespace, where the kernel lets
ordinary users make one. `unavailable` says why neither works here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

USER: Final = 10001
WRITABLE: Final = ("/data", "/tmp")

_SCRIPT: Final = """
set -eu
root=$1 user=$2 base=$3
shift 3
if [ "$(id -u)" = 0 ] && [ -z "${NESTED-}" ]; then mount --make-rprivate /; fi
mount -t tmpfs -o mode=0755 cage "$root"
bind() {  # bind SOURCE PLACE: read-only
    [ -e "$1" ] || return 0
    if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$root$(dirname "$2")"; : >"$root$2"; fi
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
}
for part in /bin /lib /lib64 /sbin; do
    if [ -L "$part" ]; then cp -P "$part" "$root$part"; else bind "$part" "$part"; fi
done
for part in /usr /etc "$base"; do bind "$part" "$part"; done
while [ "$1" != -- ]; do bind "$1" "$2"; shift 2; done
shift
mkdir -p "$root/proc" "$root/dev" "$root/data" "$root/tmp"
mount --rbind /proc "$root/proc"  # of the machine: the cage has no processes of its own
for device in null zero random urandom; do : >"$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
# As the image's own folder: its user's. Where that user is mapped later, any user may write.
mount -t tmpfs -o mode=0777,size=480m data "$root/data"
[ -n "${NESTED-}" ] || { chown "$user:$user" "$root/data" && chmod 0700 "$root/data"; }
mount -t tmpfs -o mode=1777,size=100m tmp "$root/tmp"
mount -o remount,bind,ro "$root"
cd "$root"
if [ -n "${NESTED-}" ]; then
    unset NESTED
    exec unshare --user --map-user="$user" --map-group="$user" --root="$root" --wd=/app "$@"
fi
exec unshare --root="$root" --wd=/app setpriv --reuid="$user" --regid="$user" --clear-groups --no-new-privs \\
    --inh-caps=-all --bounding-set=-all "$@"
"""


def command(root: Path, places: Mapping[Path, str], program: Sequence[str]) -> list[str]:
    """What runs a program in a cage.

    Args:
        root: An empty folder, where the cage's own root is mounted.
        places: What else is seen inside, read-only, and where.
        program: The program, with its path as it is inside. It starts in /app.
    """
    script = ["sh", "-c", _SCRIPT, "cage", str(root), str(USER), sys.base_prefix]
    for source, place in places.items():
        script += [str(source), place]
    return [*_namespaces(), *script, "--", *program]


def _namespaces() -> list[str]:
    if os.geteuid() == 0:
        return ["unshare", "--mount", "--"]
    return ["unshare", "--user", "--map-root-user", "--mount", "--", "env", "NESTED=1"]


def unavailable(scratch: Path) -> str:
    """Why there can be no cage here; empty if there can."""
    for program in ("unshare", "mount", "setpriv"):
        if shutil.which(program) is None:
            return f"there is no `{program}` here"
    tried = subprocess.run(command(scratch, {scratch: "/app"}, ["/bin/true"]), capture_output=True, text=True, check=False)
    return f"the kernel allows no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""
