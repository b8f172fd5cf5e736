"""deploy/terraform beside deploy/deploy.sh: the same names, the same rights, and templates that Terraform can fill in.

No provider of Google's is needed: Terraform itself formats, reads and evaluates. What Google's provider makes of it was not
seen.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
MODULE = ROOT / "deploy" / "terraform"
TEXT = "\n".join(file.read_text() for file in sorted(MODULE.glob("*.tf")))
SCRIPTS = "\n".join((ROOT / "deploy" / name).read_text() for name in ("deploy.sh", "pubsub.sh", "settings.sh"))

MADE = {
    # What the scripts make with gcloud, and the resource that stands for it.
    "services enable": "google_project_service",
    "storage buckets create": "google_storage_bucket",
    "artifacts repositories create": "google_artifact_registry_repository",
    "iam service-accounts create": "google_service_account",
    "iam roles create": "google_project_iam_custom_role",
    "run jobs replace": "google_cloud_run_v2_job",
    "run services replace": "google_cloud_run_v2_service",
    "pubsub schemas create": "google_pubsub_schema",
    "pubsub topics create": "google_pubsub_topic",
    "pubsub subscriptions create": "google_pubsub_subscription",
    "logging metrics create": "google_logging_metric",
    "beta monitoring channels create": "google_monitoring_notification_channel",
    "alpha monitoring policies create": "google_monitoring_alert_policy",
}

terraform = pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")


def commands(text: str) -> str:
    """A script without its comments."""
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))


def test_it_makes_what_the_script_makes() -> None:
    """Each kind of thing that the scripts create is a resource of the module."""
    resources = set(re.findall(r'^resource "(\w+)"', TEXT, re.MULTILINE))
    for command, resource in MADE.items():
        assert re.search(rf"gcloud {command}\b", SCRIPTS), command
        assert resource in resources, resource
    created = set(re.findall(r"gcloud ((?:alpha |beta )?[a-z]+ [a-z-]+ create)\b", commands(SCRIPTS)))
    assert created - {"beta services identity create"} <= set(MADE) | {"scheduler jobs create"}


def test_it_grants_what_the_script_grants() -> None:
    """The same roles, and the same permissions of the role of our own."""
    granted = set(re.findall(r"\broles/\w+\.\w+", commands(SCRIPTS)))
    assert set(re.findall(r"\broles/\w+\.\w+", TEXT)) == granted
    assert set(re.findall(r"\bpubsub\.snapshots\.\w+", TEXT)) == set(re.findall(r"\bpubsub\.snapshots\.\w+", SCRIPTS))


def test_its_names_are_the_scripts() -> None:
    """Each default is the script's."""
    script = {name.lower(): default for name, default in re.findall(r"\$\{([A-Z_]+):?-([^}]*)\}", SCRIPTS)}
    module = dict(re.findall(r'variable "(\w+)" \{[^}]*?default\s+= "?([^"\n]*)"?', TEXT))
    same = ("service", "prefix", "repository", "topic", "schema", "subscription", "dead_letters", "cpu", "memory", "ingress")
    for name in (*same, "network", "subnet", "checkpoint_hours", "log_level", "soft_delete_days", "ack_deadline_seconds"):
        assert module[name] == script[name], name
    apis = set(re.findall(r'"([a-z]+)"', re.findall(r"for_each = toset\(concat\((.*?)\)\)", TEXT, re.DOTALL)[0]))
    wanted = set(re.findall(r"[a-z]+", re.findall(r"wanted=\(([a-z ]+)\)", SCRIPTS)[0]))
    assert apis == wanted | {"compute", "cloudscheduler"}


@terraform
def test_it_is_formatted_and_can_be_read() -> None:
    """Terraform's own reader and formatter."""
    done = subprocess.run(["terraform", "fmt", "-check", str(MODULE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@terraform
@pytest.mark.parametrize(
    "name",
    [
        "service.yaml",
        "job.yaml",
        *[f"alert-policies/{each.name}" for each in sorted((ROOT / "deploy" / "alert-policies").glob("*.yaml"))],
    ],
)
def test_terraform_fills_in_the_scripts_templates(name: str, tmp_path: Path) -> None:
    """Every name in a template has a value in the module, and what Terraform makes of it is the script's YAML."""
    names = set(re.findall(r"^    ([A-Z_]+)\s+=", TEXT, re.MULTILINE))
    used = set(re.findall(r"\$\{(\w+)\}", (ROOT / "deploy" / name).read_text()))
    assert used <= names, used - names
    values = ", ".join(f'{each} = "v"' for each in sorted(used))
    asked = f'yamldecode(templatefile("{ROOT}/deploy/{name}", {{{values}}})) == null\n'
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CHECKPOINT_DISABLE": "1"}
    done = subprocess.run(
        ["terraform", "console"],
        input=asked.replace("\n", " ").strip() + "\n",
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["false"]), done.stdout + done.stderr
    assert isinstance(yaml.safe_load((ROOT / "deploy" / name).read_text()), dict)
