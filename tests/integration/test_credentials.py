"""The whole way with real credentials of each kind: Litestream needs none of its own, since the gate has them.

Litestream 0.5.17 cannot upload with a user's, an impersonated or a federated account's credentials (its issue 1512).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local.worker_process import ROOT
from tests.standin import KINDS


def unavailable() -> str:
    """Why there can be no namespace with names of its own here; empty if there can."""
    for program in ("unshare", "ip", "mount"):
        if shutil.which(program) is None:
            return f"there is no `{program}` here"
    if os.geteuid() != 0:
        return "it takes root to listen on 443 and to name Google's servers"
    tried = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    return f"the kernel allows no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.skipif(bool(unavailable()), reason=unavailable())]


@pytest.mark.parametrize("kind", KINDS)
def test_every_command_works_with_every_kind_of_credentials(kind: str, tmp_path: Path) -> None:
    """init, serve, push, restore, drill, recover, and serving what was recovered; each request had this kind's token."""
    command = ["unshare", "--net", "--mount", "--", sys.executable, "-m", "tests.standin", kind, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    found: dict[str, object] = {}
    for line in done.stdout.splitlines():
        found |= json.loads(line)
    bucket = found.pop("bucket")
    assert found == {
        "init": 0,
        "push": 204,
        "restore": 0,
        "drill": 0,
        "push again": 204,
        "recover": 0,
        "users after the recovery": [200, 404],
    }
    assert isinstance(bucket, dict)
    assert set(bucket["answered"]) == {kind}
    assert bucket["refused"] == 0
