"""deploy/deploy.sh and destroy.sh with the real gcloud on recording endpoints: what is sent, and what a second run changes.

`tests/cloud.py` is what answers. It shows that gcloud takes each command and flag, and what it makes of them; that Google's
own interfaces take the result was not seen here.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from local.worker_process import ROOT
from tests.cloud import NUMBER, PROJECT, Cloud, Serving
from tests.warm_gcloud import warm_gcloud
from worker import config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),  # a deployment is some ninety starts of gcloud
    pytest.mark.skipif(shutil.which("gcloud") is None and not os.environ.get("CI"), reason="gcloud is not installed"),
]

REGION = "europe-west1"
READER = "serviceAccount:reader@acme.iam.gserviceaccount.com"
URL = f"https://users-worker-{NUMBER}.{REGION}.run.app"
RUNTIME, PUSHER, BUILDER = (
    f"serviceAccount:{name}@{PROJECT}.iam.gserviceaccount.com"
    for name in ("users-worker", "users-worker-push", "users-worker-build")
)
AGENT = f"serviceAccount:service-{NUMBER}@gcp-sa-pubsub.iam.gserviceaccount.com"
OPERATORS = f"ops@{PROJECT}.iam.gserviceaccount.com,night@{PROJECT}.iam.gserviceaccount.com"
EMAIL = "ops@example.com"
SERVICE = f"run/apis/serving.knative.dev/v1/namespaces/{PROJECT}/services/users-worker"
JOB = f"run/apis/run.googleapis.com/v1/namespaces/{PROJECT}/jobs/users-worker-command"
INVOKERS = f"run/v1/projects/{PROJECT}/locations/{REGION}/services/users-worker"
REPOSITORY = f"artifactregistry/v1/projects/{PROJECT}/locations/{REGION}/repositories/solowriter"
ROLE = f"projects/{PROJECT}/roles/users_worker_snapshots"


@pytest.fixture(scope="session", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each command of gcloud without the time that it takes to load."""
    with warm_gcloud(tmp_path_factory.mktemp("gcloud")) as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        yield


def clone(folder: Path) -> Path:
    """What a clone has that a deployment needs, in a place where it may leave files."""
    for name in (".dockerignore", ".gcloudignore", "Dockerfile", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    for name in ("deploy", "publisher", "worker"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "README.md").write_text("of no use in an image")
    return folder


def start(
    script: str, folder: Path, variables: dict[str, str], arguments: tuple[str, ...] = (PROJECT, REGION)
) -> subprocess.CompletedProcess[str]:
    """Run a script with these variables and nothing else that could point it anywhere."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return subprocess.run(
        [str(folder / "deploy" / script), *arguments],
        env=kept | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )


def on(cloud: Cloud, script: str, folder: Path, **variables: str) -> str:
    """Run a script against the cloud; what it printed."""
    (folder / "gcloud").mkdir(exist_ok=True)
    with Serving(cloud, folder) as serving:
        done = start(
            script,
            folder,
            {"RETRY_SECONDS": "0", "OPERATORS": OPERATORS, "ALERT_EMAIL": EMAIL} | serving.environment | variables,
        )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def printed(text: str) -> list[list[str]]:
    """The commands among what it printed, each as its words."""
    return [shlex.split(line.removeprefix("+ ")) for line in text.splitlines() if line.startswith("+ ")]


def verbs(text: str) -> list[str]:
    """What the commands do, and to what."""
    found = []
    for command in printed(text):
        words = [word for word in command[1:] if not word.startswith("-") and not word.endswith(".googleapis.com")]
        found.append(" ".join(words).replace(f".iam.gserviceaccount.com{''}", ""))
    return found


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """A deployment into an empty project: the cloud after it, and what was printed. Once for all processes that test."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared
    kept = shared / "deployment"
    with (shared / "deployment.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            # The first grant on the bucket is refused twice, as it can be while an account is new.
            cloud = Cloud(refusals={f"storage/b/{PROJECT}-users": 2})
            text = on(cloud, "deploy.sh", clone(tmp_path_factory.mktemp("clone")))
            state = {each.name: getattr(cloud, each.name) for each in fields(Cloud) if each.name != "lock"}
            kept.write_bytes(pickle.dumps((pickle.dumps(state), text)))
        recorded: tuple[bytes, str] = pickle.loads(kept.read_bytes())
        return recorded


@pytest.fixture
def deployed(recording: tuple[bytes, str]) -> Cloud:
    """The cloud after that deployment; each test has its own."""
    return Cloud(**pickle.loads(recording[0]))


def test_everything_is_made_in_its_order(recording: tuple[bytes, str]) -> None:
    """The store before the service, the service before its subscription; accounts before what they are granted."""
    image = re.search(r"worker:[0-9a-f]{16}\n", recording[1])
    assert image
    assert verbs(recording[1]) == [
        "services enable",
        "storage buckets create gs://acme-users",
        "artifacts repositories create solowriter",
        "artifacts repositories set-cleanup-policies solowriter",
        "artifacts repositories create solowriter-docker-hub",
        "storage buckets create gs://acme-users-build",
        "storage buckets update gs://acme-users-build",
        "iam service-accounts create users-worker",
        "iam service-accounts create users-worker-push",
        "iam service-accounts create users-worker-build",
        "storage buckets add-iam-policy-binding gs://acme-users-build",
        "artifacts repositories add-iam-policy-binding solowriter",
        "artifacts repositories add-iam-policy-binding solowriter-docker-hub",
        "projects add-iam-policy-binding acme",
        "storage buckets add-iam-policy-binding gs://acme-users",
        "iam roles create users_worker_snapshots",
        "projects add-iam-policy-binding acme",
        "beta services identity create",
        "iam service-accounts add-iam-policy-binding users-worker-push@acme",
        "compute networks subnets update default",
        "builds submit .",
        "run jobs replace .run/deploy/job.yaml",
        "run jobs execute users-worker-command",
        "run services replace .run/deploy/service.yaml",
        *["run services add-iam-policy-binding users-worker"] * 4,
        "pubsub schemas validate-message",
        "pubsub schemas create user-created",
        "pubsub topics create users",
        "pubsub topics create users-dead-letters",
        "pubsub subscriptions create users-dead-letters",
        "pubsub topics add-iam-policy-binding users-dead-letters",
        "pubsub subscriptions create users-worker",
        "pubsub subscriptions add-iam-policy-binding users-worker",
        "pubsub subscriptions add-iam-policy-binding users-worker",
        "pubsub subscriptions add-iam-policy-binding users-worker",
        "beta monitoring channels create",
        "logging metrics create users-worker-starts",
        *["alpha monitoring policies create"] * 6,
        "run jobs execute users-worker-command",
        "pubsub topics publish users",
        "run jobs execute users-worker-command",
    ]


def test_the_buckets_are_closed(deployed: Cloud) -> None:
    """Accounts alone, never public, in the region; the data's soft delete is seven days, the sources go after one day."""
    data, sources = (deployed.resources[f"storage/b/{name}"] for name in ("acme-users", "acme-users-build"))
    for bucket in (data, sources):
        assert bucket["location"] == REGION.upper()
        assert bucket["iamConfiguration"]["uniformBucketLevelAccess"]["enabled"] is True
        assert bucket["iamConfiguration"]["publicAccessPrevention"] == "enforced"
    assert data["softDeletePolicy"] == {"retentionDurationSeconds": "604800"}
    assert "lifecycle" not in data
    assert sources["softDeletePolicy"] == {"retentionDurationSeconds": "0"}
    assert sources["lifecycle"]["rule"] == [{"action": {"type": "Delete"}, "condition": {"age": 1}}]


def test_each_account_may_do_its_part_and_no_more(deployed: Cloud) -> None:
    """These are all bindings there are, after two refusals of the first one."""
    assert {key: deployed.policy(key) for key in deployed.policies} == {
        "storage/b/acme-users": {("roles/storage.objectUser", RUNTIME)},
        "storage/b/acme-users-build": {("roles/storage.objectViewer", BUILDER)},
        REPOSITORY: {("roles/artifactregistry.writer", BUILDER)},
        f"{REPOSITORY}-docker-hub": {("roles/artifactregistry.reader", BUILDER)},
        f"cloudresourcemanager/v1/projects/{PROJECT}": {("roles/logging.logWriter", BUILDER), (ROLE, RUNTIME)},
        f"iam/v1/projects/-/serviceAccounts/{PUSHER.partition(':')[2]}": {
            ("roles/iam.serviceAccountOpenIdTokenCreator", AGENT)
        },
        INVOKERS: {
            ("roles/run.invoker", PUSHER),
            ("roles/run.invoker", RUNTIME),
            *(("roles/run.invoker", f"serviceAccount:{each}") for each in OPERATORS.split(",")),
        },
        f"pubsub/v1/projects/{PROJECT}/topics/users-dead-letters": {("roles/pubsub.publisher", AGENT)},
        f"pubsub/v1/projects/{PROJECT}/subscriptions/users-worker": {
            ("roles/pubsub.subscriber", AGENT),
            ("roles/pubsub.subscriber", RUNTIME),
            ("roles/pubsub.viewer", RUNTIME),
        },
    }
    assert deployed.refusals == {"storage/b/acme-users": 0}
    role = deployed.resources[f"iam/v1/{ROLE}"]
    wanted = {f"pubsub.snapshots.{verb}" for verb in ("create", "delete", "get", "list", "seek")}
    assert set(role["includedPermissions"]) == wanted


def test_the_image_is_built_from_its_sources_alone(deployed: Cloud) -> None:
    """What is uploaded is what the Dockerfile takes; the builder is an account of its own, and the tag cannot be moved."""
    (archive,) = deployed.uploads.values()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = {name.removeprefix("./") for name in tar.getnames()} - {"."}
    files = {name for name in names if "." in name.rpartition("/")[2] or name == "Dockerfile"}
    assert {name.partition("/")[0] for name in names} == {
        *(".dockerignore", "Dockerfile", "publisher", "requirements.lock", "worker"),
    }
    assert {
        "worker/__main__.py",
        "worker/database/migrations/0001_receipts_rejections.py",
        "publisher/message.py",
    } <= files
    assert not [name for name in names if "__pycache__" in name]
    build = deployed.resources["cloudbuild/build"]
    assert build["serviceAccount"] == f"projects/{PROJECT}/serviceAccounts/{BUILDER.partition(':')[2]}"
    assert build["options"] == {"logging": "CLOUD_LOGGING_ONLY"}
    assert build["source"]["storageSource"]["bucket"] == "acme-users-build"
    assert build["substitutions"] == {
        "_IMAGE": image_of(deployed),
        "_DOCKER_HUB": f"{REGION}-docker.pkg.dev/{PROJECT}/solowriter-docker-hub",
        "_RUN_AS": "10001:10001",
    }
    assert deployed.resources[REPOSITORY]["dockerConfig"] == {"immutableTags": True}


def image_of(cloud: Cloud) -> str:
    """The image that the service runs."""
    image: str = cloud.resources[SERVICE]["spec"]["template"]["spec"]["containers"][0]["image"]
    return image


def test_the_store_is_made_by_a_job_before_the_service_starts(deployed: Cloud) -> None:
    """`init` ran once, with the service's image and account, before the service was sent."""
    assert deployed.executed[0] == "python -m worker init"
    sent = [
        f"{each.method} {each.path.rpartition('/')[2]}" for each in deployed.requests if each.api == "run" and not each.reads
    ]
    assert sent[:3] == ["POST jobs", "POST users-worker-command:run", "POST services"]
    job = deployed.resources[JOB]["spec"]["template"]["spec"]["template"]["spec"]
    assert job["serviceAccountName"] == RUNTIME.partition(":")[2]
    assert job["containers"][0]["image"] == image_of(deployed)


def test_the_service_is_what_the_worker_needs(deployed: Cloud) -> None:
    """One instance with its CPU, probed over HTTP, with the image's own folder, and closed to the outside."""
    service = deployed.resources[SERVICE]
    assert service["metadata"]["annotations"]["run.googleapis.com/ingress"] == "internal"
    assert "run.googleapis.com/invoker-iam-disabled" not in service["metadata"]["annotations"]
    template = service["spec"]["template"]
    annotations = {name.partition("/")[2]: value for name, value in template["metadata"]["annotations"].items()}
    assert {name: value for name, value in annotations.items() if not name.startswith("client-")} == {
        "maxScale": "1",
        "minScale": "1",
        "cpu-throttling": "false",
        "startup-cpu-boost": "true",
        "execution-environment": "gen2",
    }
    spec = template["spec"]
    (container,) = spec.pop("containers")
    assert spec == {
        "serviceAccountName": RUNTIME.partition(":")[2],
        "containerConcurrency": 1000,
        "timeoutSeconds": 90,
    }
    assert "volumeMounts" not in container  # the image's own /data is memory as well, and belongs to its user
    assert container["resources"] == {"limits": {"cpu": "1", "memory": "1Gi"}}
    assert container["ports"] == [{"name": "http1", "containerPort": 8080}]
    assert container["startupProbe"]["httpGet"] == {"path": "/readyz", "port": 8080}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 8080}
    assert "command" not in container
    assert service["spec"]["traffic"] == [{"latestRevision": True, "percent": 100}]
    hosts = {each.host for each in deployed.requests if each.path.startswith("apis/")}
    assert hosts == {f"{REGION}-run.invalid"}


def test_the_worker_loads_what_the_service_tells_it(deployed: Cloud) -> None:
    """Its variables are settings of the worker, their limits nest, and they say what the subscription says."""
    (container,) = deployed.resources[SERVICE]["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value", "") for each in container["env"]}
    assert set(variables) <= {name for name, _, _ in config.described()}
    settings = config.load(variables)
    subscription = deployed.resources[f"pubsub/v1/projects/{PROJECT}/subscriptions/users-worker"]
    token = subscription["pushConfig"]["oidcToken"]
    assert settings.replica_url == "gs://acme-users/prod"
    assert settings.database_path == Path("/data/users.db")
    assert settings.ack_deadline_seconds == subscription["ackDeadlineSeconds"]
    assert settings.subscription == subscription["name"]
    assert (settings.push_audience, settings.push_service_account) == (token["audience"], token["serviceAccountEmail"])
    assert settings.operators.split(",") == [*OPERATORS.split(","), RUNTIME.partition(":")[2]]
    assert settings.tokens_verified_by == "platform"


def test_the_subscription_pushes_with_a_token(deployed: Cloud) -> None:
    """Each of its settings, and that dead letters have a place."""
    base = f"pubsub/v1/projects/{PROJECT}"
    found = deployed.resources[f"{base}/subscriptions/users-worker"]
    assert found["topic"] == f"projects/{PROJECT}/topics/users"
    assert found["pushConfig"] == {
        "pushEndpoint": f"{URL}/",
        "oidcToken": {"serviceAccountEmail": PUSHER.partition(":")[2], "audience": URL},
    }
    assert found["ackDeadlineSeconds"] == 60
    assert found["retryPolicy"] == {"minimumBackoff": "1s", "maximumBackoff": "600s"}
    assert found["retainAckedMessages"] is True
    assert found["messageRetentionDuration"] == "604800s"
    assert found["expirationPolicy"] == {}
    assert found["deadLetterPolicy"] == {
        "deadLetterTopic": f"projects/{PROJECT}/topics/users-dead-letters",
        "maxDeliveryAttempts": 100,
    }
    assert deployed.resources[f"{base}/subscriptions/users-dead-letters"]["expirationPolicy"] == {}
    topic = deployed.resources[f"{base}/topics/users"]
    assert topic["schemaSettings"] == {"schema": f"projects/{PROJECT}/schemas/user-created", "encoding": "JSON"}
    assert topic["messageRetentionDuration"] == "604800s"


def test_a_second_run_changes_nothing(deployed: Cloud, tmp_path: Path) -> None:
    """The state stays; all it sends but looks are the service, the job and Pub/Sub's settings, with the values they have."""
    before, sent = deployed.state(), len(deployed.requests)
    on(deployed, "deploy.sh", clone(tmp_path))
    assert json.loads(deployed.state())[:3] == json.loads(before)[:3]
    writes = [
        f"{each.api} {each.method} {each.path.rpartition('/')[2]}" for each in deployed.requests[sent:] if not each.reads
    ]
    assert sorted(writes) == [
        *(f"monitoring PATCH {number}" for number in range(1, 7)),
        "pubsub PATCH users",
        "pubsub PATCH users-dead-letters",
        "pubsub PATCH users-worker",
        "pubsub POST users-dead-letters:setIamPolicy",
        "pubsub POST users-worker:setIamPolicy",
        "pubsub POST users:publish",
        "run POST users-worker-command:run",
        "run POST users-worker-command:run",
        "run PUT users-worker",
        "run PUT users-worker-command",
    ]


def test_what_was_changed_by_hand_is_brought_back(deployed: Cloud, tmp_path: Path) -> None:
    """Public access, a bucket without its protection, a deleted role, more instances: as they were after one run."""
    before = json.loads(deployed.state())
    strangers = ["allUsers", f"serviceAccount:former@{PROJECT}.iam.gserviceaccount.com"]  # one was an operator once
    deployed.policies[INVOKERS].append({"role": "roles/run.invoker", "members": strangers})
    deployed.resources["storage/b/acme-users"]["iamConfiguration"]["publicAccessPrevention"] = "inherited"
    deployed.resources[f"iam/v1/{ROLE}"]["deleted"] = True
    template = deployed.resources[SERVICE]["spec"]["template"]
    template["metadata"]["annotations"]["autoscaling.knative.dev/maxScale"] = "5"
    text = on(deployed, "deploy.sh", clone(tmp_path))
    assert "iam roles undelete users_worker_snapshots" in verbs(text)
    after = json.loads(deployed.state())
    for state in (before, after):
        state[0][SERVICE]["metadata"].pop("generation")  # the service did get a new revision
        del state[0][SERVICE]["status"]
        del state[3]  # the smoke test's commands
    assert after == before


def test_destroying_keeps_the_data(deployed: Cloud, tmp_path: Path) -> None:
    """The bucket stays with its objects, and with no right of an account that is gone; all else is deleted, once."""
    clone(tmp_path)
    text = on(deployed, "destroy.sh", tmp_path, YES="1")
    assert "gs://acme-users is kept" in text
    left = {
        key
        for key in deployed.resources
        if not key.startswith(
            (
                "cloudbuild/",
                "compute/",
                f"monitoring/v3/projects/{PROJECT}/notificationChannels/",
                "run/apis/run.googleapis.com/v1/namespaces/acme/exec",
            )
        )
    }
    assert left == {"storage/b/acme-users", "storage/b/acme-users/o/prod%2Flease.json", f"iam/v1/{ROLE}"}
    assert "deleted" not in deployed.resources[f"iam/v1/{ROLE}"]  # its name could not be used again for a month
    assert not {key for key in deployed.policies if deployed.policy(key)}
    again = on(deployed, "destroy.sh", tmp_path, YES="1", DELETE_BUCKET="1")
    assert verbs(again) == ["storage rm gs://acme-users"]
    assert not [key for key in deployed.resources if key.startswith("storage/")]


@pytest.fixture
def pretender(tmp_path: Path) -> dict[str, str]:
    """Settings with a `gcloud` that writes down its calls and answers each with ANSWER, as an error."""
    folder = clone(tmp_path) / "bin"
    folder.mkdir()
    program = folder / "gcloud"
    calls = shlex.quote(str(tmp_path / "calls"))
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{calls}\ncase "$*" in\n  "services list"*) ;;\n  "services enable"*) ;;\n'
        '  "projects describe"*) echo 123 ;;\n  *) echo "$ANSWER" >&2; exit 1 ;;\nesac\n'
    )
    program.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "ANSWER": "PERMISSION_DENIED: no"}


def test_a_dry_run_prints_what_a_run_does(recording: tuple[bytes, str], pretender: dict[str, str], tmp_path: Path) -> None:
    """The same commands in the same order, without a single call."""
    dry = start("deploy.sh", tmp_path, pretender | {"DRY_RUN": "1", "OPERATORS": OPERATORS, "ALERT_EMAIL": EMAIL})
    assert dry.returncode == 0, dry.stderr
    sent = re.sub(r"\b46\d{17}\b", "SMOKE_USER", recording[1])
    assert printed(dry.stdout.replace("PROJECT_NUMBER", NUMBER)) == printed(sent)
    gone = start("destroy.sh", tmp_path, pretender | {"DRY_RUN": "1", "DELETE_BUCKET": "1"})
    assert gone.returncode == 0, gone.stderr
    assert verbs(gone.stdout)[-1] == "storage rm gs://acme-users"
    assert not (tmp_path / "calls").exists()


def test_what_cannot_be_seen_is_not_created(pretender: dict[str, str], tmp_path: Path) -> None:
    """A look that is refused ends it, and says which."""
    done = start("deploy.sh", tmp_path, pretender)
    assert done.returncode == 1
    assert "cannot look at it with `gcloud storage buckets describe gs://acme-users`: PERMISSION_DENIED: no" in done.stderr
    assert verbs(done.stdout) == ["services enable"]


def test_a_bucket_elsewhere_is_refused(tmp_path: Path) -> None:
    """A bucket cannot move, and each message would wait for it across the sea."""
    clone(tmp_path)
    cloud = Cloud()
    cloud.resources["storage/b/acme-users"] = {"name": "acme-users", "location": "US-EAST1", "kind": "storage#bucket"}
    with Serving(cloud, tmp_path) as serving:
        done = start("deploy.sh", tmp_path, serving.environment)
    assert done.returncode == 1
    assert "gs://acme-users is in US-EAST1, and a bucket cannot move" in done.stderr


def test_destroying_asks_first(pretender: dict[str, str], tmp_path: Path) -> None:
    """Without YES=1 and without an answer nothing is looked at or deleted."""
    done = start("destroy.sh", tmp_path, pretender | {"DELETE_BUCKET": "1"})
    assert done.returncode == 1
    assert "ALL DATA in gs://acme-users" in done.stderr
    assert "nothing was deleted; type the name, or set YES=1" in done.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize("script", ["deploy.sh", "destroy.sh"])
@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ((), {}, "usage:"),
        (("acme",), {}, "usage:"),
        (("acme", "--now"), {}, "usage:"),
        (("acme", REGION), {"SERVICE": "Users"}, "SERVICE is 'Users': choose 6 to 24"),
    ],
)
def test_wrong_usage_is_told(script: str, arguments: tuple[str, ...], variables: dict[str, str], said: str) -> None:
    """Exit code 2 and what to do, before anything is looked at."""
    done = start(script, ROOT, variables, arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACK_DEADLINE_SECONDS": "601"}, "ACK_DEADLINE_SECONDS is '601': give whole seconds, 26 to 600"),
        ({"ACK_DEADLINE_SECONDS": "060"}, "ACK_DEADLINE_SECONDS is '060'"),
        ({"MEMORY": "4.5Gi"}, "MEMORY is '4.5Gi': give it in Mi or Gi"),
        ({"MEMORY": "64Gi"}, "MEMORY is '64Gi': give 512Mi to 32Gi"),
        ({"MEMORY": "5Gi"}, "CPU is '1': with MEMORY=5Gi Cloud Run takes 1, 2, 4, 6 or 8, and 2 at least"),
        ({"MEMORY": "8Gi"}, "and 2 at least"),
        ({"MEMORY": "16Gi", "CPU": "2"}, "and 4 at least"),
        ({"MEMORY": "17Gi", "CPU": "4"}, "and 6 at least"),
        ({"MEMORY": "32Gi", "CPU": "6"}, "and 8 at least"),
        (
            {"OPERATORS": "ann@example.com"},
            "OPERATORS is 'ann@example.com': give service accounts, which people impersonate",
        ),
        ({"SOFT_DELETE_DAYS": "3"}, "SOFT_DELETE_DAYS is '3': give 0, or whole days from 7 to 90"),
    ],
)
def test_a_wrong_setting_is_told(variables: dict[str, str], said: str) -> None:
    """Before anything is looked at."""
    done = start("deploy.sh", ROOT, variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize("script", ["deploy.sh", "destroy.sh"])
def test_help_names_every_setting(script: str) -> None:
    """`--help` lists each variable that the script and what it sources read, and no other."""
    done = start(script, ROOT, {}, ("--help",))
    assert done.returncode == 0
    listed = set(
        re.findall(
            r"\b([A-Z_]{2,})\b", " ".join(re.findall(r"^  ([A-Z_]+(?:, [A-Z_]+)*)(?:  |$)", done.stdout, re.MULTILINE))
        )
    )
    text = (ROOT / "deploy" / script).read_text() + (ROOT / "deploy" / "settings.sh").read_text()
    read = set(re.findall(r"\$\{([A-Z_]+)[:-]", text))
    assert listed - {"NETWORK", "SUBNET"} == read - {"PYTHON", "NETWORK", "SUBNET", "BASH_REMATCH"}


@pytest.fixture
def drilled(tmp_path: Path) -> Cloud:
    """A deployment with a drill every night, a volume for the data, and a reader."""
    cloud = Cloud()
    variables = {"DRILL_SCHEDULE": "30 4 * * *", "DATA_SIZE": "480Mi", "INVOKERS": READER, "SMOKE": "0"}
    on(cloud, "deploy.sh", clone(tmp_path), **variables)
    return cloud


def test_a_scheduled_drill_reaches_the_service_and_is_not_repeated(drilled: Cloud, tmp_path: Path) -> None:
    """It runs in the project's network as an operator, for which the metadata server makes tokens; a verdict is final."""
    job = drilled.resources[JOB.replace("-command", "-drill")]["spec"]["template"]
    annotations = job["metadata"]["annotations"]
    assert json.loads(annotations["run.googleapis.com/network-interfaces"]) == [
        {"network": "default", "subnetwork": "default"}
    ]
    assert annotations["run.googleapis.com/vpc-access-egress"] == "all-traffic"
    assert drilled.resources["compute/subnet"]["privateIpGoogleAccess"] is True
    spec = job["spec"]["template"]["spec"]
    assert spec.get("maxRetries", 0) == 0
    (container,) = spec["containers"]
    assert container["args"] == ["-m", "worker", "drill"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert (variables["SERVICE_URL"], variables["PUSH_AUDIENCE"]) == (URL, URL)
    (service,) = drilled.resources[SERVICE]["spec"]["template"]["spec"]["containers"]
    operators = next(each["value"] for each in service["env"] if each["name"] == "OPERATORS")
    assert f"serviceAccount:{spec['serviceAccountName']}" == RUNTIME
    assert RUNTIME.partition(":")[2] in operators.split(",")
    schedule = drilled.resources[f"cloudscheduler/v1/projects/{PROJECT}/locations/{REGION}/jobs/users-worker-drill"]
    assert schedule["schedule"] == "30 4 * * *"
    assert schedule["httpTarget"]["uri"].endswith("/jobs/users-worker-drill:run")
    assert schedule["retryConfig"].get("retryCount", 0) == 0
    assert ("roles/run.invoker", READER) in drilled.policy(INVOKERS)
    # A volume is root's, so the commands begin as root and become the image's user.
    for each in (container, service):
        assert each["command"][:2] == ["/bin/sh", "-c"]
        assert each["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert drilled.resources["cloudbuild/build"]["substitutions"]["_RUN_AS"] == "0:0"
    on(drilled, "destroy.sh", tmp_path, YES="1")
    assert not [key for key in drilled.resources if "drill" in key or "alertPolicies" in key or key.startswith("logging/")]


def test_the_smoke_test_sees_one_user_through(deployed: Cloud) -> None:
    """The doctor, then a published user that the service is asked for and erases; an id that no user has."""
    doctor, smoke = deployed.executed[1:]
    assert doctor == "python -m worker doctor"
    (data,) = deployed.published
    user = json.loads(base64.b64decode(data))["user_id"]
    assert user > 2**62
    assert smoke == f"python -m worker smoke --user-id {user}"


def test_the_smoke_test_names_the_step_that_failed(deployed: Cloud, tmp_path: Path) -> None:
    """It fails, and the deployment with it."""
    clone(tmp_path)
    (tmp_path / "gcloud").mkdir()
    deployed.unpublishable = True
    with Serving(deployed, tmp_path) as serving:
        done = start("smoke.sh", tmp_path, serving.environment)
    assert done.returncode == 1
    assert "the smoke test failed at this step: publish;" in done.stderr


def test_alerts_need_no_prometheus(deployed: Cloud) -> None:
    """Age, dead letters, push responses, restarts, and two lines of the log; each tells the channel and what to read."""
    channel = deployed.resources[f"monitoring/v3/projects/{PROJECT}/notificationChannels/1"]
    assert channel["labels"] == {"email_address": EMAIL}
    policies = [value for key, value in deployed.resources.items() if "/alertPolicies/" in key]
    conditions = {each["displayName"]: each for policy in policies for each in policy["conditions"]}
    assert set(conditions) == {
        *("oldest_unacked_message_age", "dead_letter_message_count", "push_request_count", "starts"),
        *("worker.failed", "replication.gave_up"),
    }
    for policy in policies:
        assert policy["notificationChannels"] == [channel["name"]]
        assert "docs/" in policy["documentation"]["content"]
        (condition,) = policy["conditions"]
        asked = (condition.get("conditionThreshold") or condition["conditionMatchedLog"])["filter"]
        assert "users-worker" in asked
    metric = deployed.resources[f"logging/v2/projects/{PROJECT}/metrics/users-worker-starts"]
    assert 'jsonPayload.action="worker.starting"' in metric["filter"]


def test_settings_come_from_a_file_for_each_environment(pretender: dict[str, str], tmp_path: Path) -> None:
    """What the environment says wins over the file; a line that is none is told."""
    file = tmp_path / "prod.env"
    file.write_text(f"# production\nPROJECT=acme\nREGION={REGION}\nBUCKET=elsewhere\nPREFIX=eu\n")
    variables = pretender | {"DRY_RUN": "1", "SETTINGS": str(file), "PREFIX": "us"}
    done = start("deploy.sh", tmp_path, variables, ())
    assert done.returncode == 0, done.stderr
    assert "serves gs://elsewhere/us at" in done.stdout
    file.write_text("MEMORY 2Gi\n")
    refused = start("deploy.sh", tmp_path, variables, ())
    assert (refused.returncode, "stands 'MEMORY 2Gi': write NAME=value" in refused.stderr) == (2, True)
