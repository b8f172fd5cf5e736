"""What is deployed agrees with what the worker is told and promises: its limits, its memory, its rights."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import worker.operations.pubsub
from deploy.render import render
from worker import config
from worker.config import limits
from worker.errors import ConfigError

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
SETTINGS = config.Settings(replica_url="gs://acme-users/prod", push_audience="a", push_service_account="push@acme.example")
"""The defaults, with senders verified: then one more rule has to hold."""

SCRIPT = (DEPLOY / "deploy.sh").read_text()
PUBSUB = (DEPLOY / "pubsub.sh").read_text()
DEFAULTS = dict(re.findall(r"\$\{([A-Z_]+):?-([^}]*)\}", SCRIPT))
"""The script's own defaults."""
VALUES = DEFAULTS | {
    "SERVICE": "users-worker",
    "JOB": "users-worker-command",
    "PROJECT": "acme",
    "RUNTIME": "users-worker@acme.iam.gserviceaccount.com",
    "PUSHER": "users-worker-push@acme.iam.gserviceaccount.com",
    "IMAGE": "europe-west1-docker.pkg.dev/acme/solowriter/worker:1",
    "URL": "https://users-worker-1.europe-west1.run.app",
    "REPLICA_URL": "gs://acme-users/prod",
    "SUBSCRIPTION": "users-worker",
    "NETWORK": "default",
    "SUBNET": "default",
    "VERB": "init",
    "RETRIES": "3",
    "REQUEST_TIMEOUT_SECONDS": str(int(DEFAULTS["ACK_DEADLINE_SECONDS"]) + 30),
}
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

NEEDED = {
    # Pub/Sub documentation, "Access control with IAM": the permissions of each method. Those of snapshots are asked for on
    # the project or the snapshot, those of subscriptions on the subscription.
    "get_subscription": {"pubsub.subscriptions.get"},
    "create_snapshot": {"pubsub.snapshots.create", "pubsub.subscriptions.consume"},
    "get_snapshot": {"pubsub.snapshots.get"},
    "list_snapshots": {"pubsub.snapshots.list"},
    "delete_snapshot": {"pubsub.snapshots.delete"},
    "seek": {"pubsub.subscriptions.consume", "pubsub.snapshots.seek"},
}
GIVEN = {"roles/pubsub.subscriber": {"pubsub.subscriptions.consume"}, "roles/pubsub.viewer": {"pubsub.subscriptions.get"}}
"""What is used of the two roles on the subscription."""


def parsed(name: str, **more: str) -> Any:
    """A template with its values."""
    return yaml.safe_load(render((DEPLOY / name).read_text(), VALUES | more))


def service(**more: str) -> Any:
    """What a revision of the service is made of."""
    return parsed("service.yaml", **more)["spec"]["template"]["spec"]


def container(**more: str) -> Any:
    """Its one container."""
    (only,) = service(**more)["containers"]
    return only


def size(text: str) -> int:
    """A quantity of memory, in bytes."""
    return int(text[:-2]) * UNITS[text[-2:]]


@pytest.mark.parametrize("name", ["service.yaml", "job.yaml", "cloudbuild.yaml"])
def test_the_files_are_yaml_with_and_without_values(name: str) -> None:
    """A template can be read by whatever reads YAML."""
    assert isinstance(yaml.safe_load((DEPLOY / name).read_text()), dict)
    for size_of_volume in ("", "480Mi") if name != "cloudbuild.yaml" else ():
        assert "$" not in json.dumps(parsed(name, DATA_SIZE=size_of_volume)).replace('\\"$@\\"', "")


def test_a_value_that_is_missing_or_not_plain_is_refused() -> None:
    """Nothing half filled in is deployed, and no value can add a line to the file."""
    with pytest.raises(ValueError, match=r"no value for B, C"):
        render("a: ${A}\nb: ${B}${C}\n", {"A": "1"})
    for value in ('x"\n    y: z', "a b", "${HOME}", "`id`"):
        with pytest.raises(ValueError, match="A is"):
            render("# ${NO_NAME}\na: ${A}\n", {"A": value})
    assert render("# ${NO_NAME}\na: ${A}\n", {"A": "x@y:1,z/2"}) == "a: x@y:1,z/2\n"


@pytest.mark.parametrize(("arguments", "said"), [((), "usage:"), (("nowhere.yaml",), "render.py: "), (("a", "b"), "usage:")])
def test_a_wrong_call_of_the_renderer_is_no_traceback(arguments: tuple[str, ...], said: str) -> None:
    """One line: how it is called, or which file is not there."""
    command = [sys.executable, str(DEPLOY / "render.py"), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith(said)


def test_the_time_limits_nest_across_service_subscription_and_settings() -> None:
    """INV-8: the worker answers first, then the queue gives up, then the platform would."""
    (deadline,) = re.findall(r"--ack-deadline=\"\$\{ACK_DEADLINE_SECONDS:-(\d+)\}\"", PUBSUB)
    assert SETTINGS.ack_deadline_seconds == int(deadline) == int(DEFAULTS["ACK_DEADLINE_SECONDS"])
    assert SETTINGS.hold_limit_seconds < int(deadline) < service()["timeoutSeconds"]
    assert 'REQUEST_TIMEOUT_SECONDS="$((ack_deadline + 30))"' in SCRIPT
    variables = {each["name"]: each["value"] for each in container()["env"]}
    assert config.load(variables).hold_limit_seconds < float(variables["ACK_DEADLINE_SECONDS"])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ACK_DEADLINE_SECONDS", ("10", "25", "26", "30", "99", "100", "600", "601", "x", "30.5")),
        ("LOG_LEVEL", ("debug", "info", "warning", "error", "INFO", "critical")),
        ("CHECKPOINT_HOURS", ("0", "0.5", "1", "1.5", "24", "-1", "x")),
    ],
)
def test_a_deployment_takes_what_the_worker_takes(name: str, values: tuple[str, ...]) -> None:
    """What the worker refuses is told before anything is made, and not by a revision that never becomes ready."""
    variables = {each["name"]: each["value"] for each in container()["env"]}
    for value in values:
        done = subprocess.run(
            [str(DEPLOY / "deploy.sh"), "acme", "europe-west1"],
            env={**os.environ, "DRY_RUN": "1", "IMAGE": "x/y:1", name: value},
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            config.load({**variables, name: value})
            accepted = value != "30.5"  # Pub/Sub takes whole seconds
        except ConfigError:
            accepted = False
        assert done.returncode == (0 if accepted else 2), f"{value}: {done.stderr}"
        assert accepted or f"{name} is '{value}': give " in done.stderr


def test_the_probes_ask_what_they_should_for_long_enough() -> None:
    """Ready while standing by, within what the platform allows; alive until a minute of silence."""
    start, live = container()["startupProbe"], container()["livenessProbe"]
    assert (start["httpGet"]["path"], live["httpGet"]["path"]) == ("/readyz", "/healthz")
    assert start["httpGet"]["port"] == live["httpGet"]["port"] == container()["ports"][0]["containerPort"]
    for probe in (start, live):
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
    assert 60 <= start["periodSeconds"] * start["failureThreshold"] <= 240
    # Not within what the settings allow one blocking step to take: a slow bucket is no reason for a kill.
    silence = live["periodSeconds"] * live["failureThreshold"]
    assert silence > limits.BUSY_TIMEOUT_SECONDS + SETTINGS.sync_timeout_seconds


def test_the_job_may_take_as_long_as_the_longest_command() -> None:
    """A restore and the full copy after it fit into the job's time."""
    spec = parsed("job.yaml")["spec"]["template"]["spec"]["template"]["spec"]
    assert int(spec["timeoutSeconds"]) > SETTINGS.restore_timeout_seconds + SETTINGS.first_sync_timeout_seconds
    assert [*spec["containers"][0]["command"], *spec["containers"][0]["args"]] == ["python", "-m", "worker", "init"]


def test_the_folder_is_full_before_the_memory_is() -> None:
    """The largest database that a volume takes, three times over, needs no more memory than there is (worker doctor)."""
    assert "volumes" not in service()
    assert "volumeMounts" not in container()
    (volume,) = service(DATA_SIZE="480Mi")["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    memory = size(container()["resources"]["limits"]["memory"])
    database = size(volume["emptyDir"]["sizeLimit"]) / 3
    assert 4 * database + 6 * SETTINGS.queue_max_bytes <= memory
    (mount,) = container(DATA_SIZE="480Mi")["volumeMounts"]
    variables = {each["name"]: each["value"] for each in container()["env"]}
    assert mount["name"] == volume["name"]
    assert Path(variables["DATABASE_PATH"]).parent == Path(mount["mountPath"])


def test_one_instance_takes_what_the_worker_holds() -> None:
    """One, never none, with its CPU; it holds less than the platform lets in, so that it refuses and not the platform."""
    annotations = parsed("service.yaml")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["autoscaling.knative.dev/maxScale"] == annotations["autoscaling.knative.dev/minScale"] == "1"
    assert annotations["run.googleapis.com/cpu-throttling"] == "false"
    assert annotations["run.googleapis.com/execution-environment"] == "gen2"
    assert service()["containerConcurrency"] > SETTINGS.queue_max_messages
    assert parsed("service.yaml")["metadata"]["annotations"]["run.googleapis.com/ingress"] == "internal"


def test_the_service_sets_only_what_is_a_setting() -> None:
    """A mistyped variable would be ignored in silence."""
    known = {name for name, _, _ in config.described()} | {"SERVICE_URL"}  # which the commands of the job read
    for each in (container(), parsed("job.yaml")["spec"]["template"]["spec"]["template"]["spec"]["containers"][0]):
        assert {variable["name"] for variable in each["env"]} <= known


def test_the_worker_has_the_rights_that_it_uses_and_no_others() -> None:
    """What the calls in worker/operations/pubsub.py need is what our own role and the two on the subscription give."""
    called = set(re.findall(r"_subscriber\(\)\.(\w+)\(", inspect.getsource(worker.operations.pubsub)))
    assert called == set(NEEDED)
    role = set(re.findall(r"\bpubsub\.snapshots\.\w+", SCRIPT))
    granted = set(re.findall(r"\broles/pubsub\.\w+", SCRIPT.partition("make_subscription()")[2]))
    assert granted == set(GIVEN)
    assert role | set().union(*GIVEN.values()) == set().union(*NEEDED.values())


def test_every_role_that_is_granted_is_explained() -> None:
    """The table in docs/security.md has each role that the scripts grant and no other, and what our own role holds."""
    text = (ROOT / "docs" / "security.md").read_text()
    table = re.findall(r"^\|.*$", text.partition("\n## Accounts\n")[2].partition("\n## ")[0], re.MULTILINE)
    granting = [line for line in SCRIPT.splitlines() + PUBSUB.splitlines() if not line.lstrip().startswith("#")]
    granted = set(re.findall(r"\broles/\w+\.\w+", "\n".join(granting)))
    assert set(re.findall(r"\broles/\w+\.\w+", "\n".join(table))) == granted
    (own,) = [row for row in table if "a role of its own" in row]
    verbs = set(re.findall(r"\bpubsub\.snapshots\.(\w+)", SCRIPT))
    assert set(re.findall(r"`(?:pubsub\.snapshots\.)?([a-z]+)`", own)) == verbs


def test_what_is_deleted_can_be_brought_back_as_long_as_it_would_be_kept() -> None:
    """Soft delete covers the retention of generations; the queue's retention ends before receipts do."""
    assert int(DEFAULTS["SOFT_DELETE_DAYS"]) >= SETTINGS.retention_days
    assert int(re.findall(r"\$\{RETENTION:-(\d+)d\}", PUBSUB)[0]) < SETTINGS.receipt_days


@pytest.mark.parametrize("target", ["deploy", "destroy"])
def test_make_asks_where(target: str) -> None:
    """Without a project and a region there is nothing to do, and it says what to type."""
    done = subprocess.run(["make", target, "PROJECT=acme"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"say where: make {target} PROJECT=... REGION=..." in done.stderr


@pytest.mark.parametrize("target", ["deploy", "destroy"])
@pytest.mark.parametrize("wrong", ["a;touch made", "a b", "Acme", "--help me"])
def test_make_takes_a_project_for_a_name_only(target: str, wrong: str, tmp_path: Path) -> None:
    """What is given is one word that the script looks at, never a part of a command."""
    command = ["make", "-f", str(ROOT / "Makefile"), target, "REGION=europe-west1", "DRY_RUN=1"]
    (tmp_path / "deploy").symlink_to(DEPLOY)
    variables = {**os.environ, "PROJECT": wrong}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        "usage:" in done.stderr or f"PROJECT is '{wrong}' and REGION is 'europe-west1': give the project's id" in done.stderr
    )
    assert [each.name for each in tmp_path.iterdir()] == ["deploy"]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with what the scripts use of the system, and no gcloud."""
    for name in ("bash", "basename", "cat", "dirname", "env", "mktemp", "rm", "tr"):
        program = shutil.which(name)
        assert program is not None
        (tmp_path / name).symlink_to(program)
    return tmp_path


@pytest.mark.parametrize("script", ["deploy.sh", "destroy.sh", "pubsub.sh"])
def test_without_gcloud_nothing_seems_to_be_done(script: str, programs: Path) -> None:
    """A shell's "not found" is no answer to whether something is there; it says what to install."""
    arguments = ["acme", *(["europe-west1"] if script != "pubsub.sh" else [])]
    variables = {"PATH": str(programs), "YES": "1", "ENDPOINT": "https://worker.example"}
    done = subprocess.run([str(DEPLOY / script), *arguments], env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{script}: gcloud is not installed: see https://")


def test_a_project_that_cannot_be_seen_is_not_destroyed(programs: Path) -> None:
    """Pub/Sub says NOT_FOUND of everything in a mistyped project, which would look as if it had been destroyed already."""
    (programs / "gcloud").write_text("#!/bin/sh\necho 'NOT_FOUND: Requested project not found' >&2\nexit 1\n")
    (programs / "gcloud").chmod(0o755)
    (programs / "sh").symlink_to("/bin/sh")
    command, variables = [str(DEPLOY / "destroy.sh"), "acmee", "europe-west1"], {"PATH": str(programs), "YES": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no project 'acmee' that this login may see: correct PROJECT" in done.stderr


def test_make_hands_on_its_settings() -> None:
    """What stands on make's command line reaches the script."""
    command = ["make", "deploy", "PROJECT=acme", "REGION=europe-west1", "DRY_RUN=1", "BUCKET=elsewhere", "IMAGE=x/y:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "+ gcloud storage buckets create gs://elsewhere " in done.stdout
    assert "gcloud builds submit" not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="it takes root, as a container has")
@pytest.mark.parametrize("name", ["service.yaml", "job.yaml"])
def test_a_volume_is_given_to_the_user_who_then_has_no_way_back(name: str) -> None:
    """The command as deployed with DATA_SIZE: root's folder becomes 10001's, and Python starts without any right."""
    spec = parsed(name, DATA_SIZE="480Mi")["spec"]["template"]["spec"]
    (only,) = (spec if name == "service.yaml" else spec["template"]["spec"])["containers"]
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        data = Path(place, "data")
        data.mkdir(mode=0o700)
        program = Path(place, "python")
        lines = [
            "#!/bin/sh",
            "id -u",
            "id -g",
            "grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status",
            f'touch {data}/users.db && echo "$@"',
        ]
        program.write_text("\n".join(lines))
        program.chmod(0o755)
        shell, flag, script, *rest = only["command"]
        done = subprocess.run(
            [shell, flag, script.replace("/data", str(data)), *rest, *only["args"]],
            env={"PATH": f"{place}:/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        words = done.stdout.split()
        assert words[:2] == ["10001", "10001"], done.stderr
        assert dict(zip(words[2:8:2], words[3:8:2], strict=True)) == {
            "CapEff:": "0000000000000000",
            "CapBnd:": "0000000000000000",
            "NoNewPrivs:": "1",
        }
        assert words[8:] == only["args"]
        assert (data / "users.db").stat().st_uid == 10001
