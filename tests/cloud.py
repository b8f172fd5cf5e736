"""As much of Google Cloud as deploy/ asks of it, on loopback: it keeps what it is sent, and answers as the real one does.

One server for all interfaces, told apart by the first part of the path. What gcloud demands beyond an endpoint's address:

- Cloud Run's commands put the region in front of the endpoint's host (`europe-west1-run.invalid`), and no such name leads to
  loopback. So its endpoint has a name that leads nowhere, and requests go through this server as their HTTP proxy.
- deploy/pubsub.sh takes a Pub/Sub endpoint without TLS for the emulator, which lacks IAM; so Pub/Sub is served with TLS, by
  a certificate made for the occasion.
"""

from __future__ import annotations

import ipaddress
import json
import ssl
import threading
import urllib.parse
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PROJECT: Final = "acme"
NUMBER: Final = "123456789012"
PLAIN: Final = (
    "storage",
    "iam",
    "cloudresourcemanager",
    "serviceusage",
    "artifactregistry",
    "cloudbuild",
    "compute",
    "monitoring",
    "logging",
    "cloudscheduler",
)
Body = dict[str, Any]


@dataclass
class Request:
    """One request: which interface, what it asks, and its body: JSON, or bytes for an upload."""

    host: str
    api: str
    method: str
    path: str
    query: dict[str, str]
    body: Any

    @property
    def reads(self) -> bool:
        """Whether it only looks: Google's interfaces have a few reads that are POST."""
        return self.method == "GET" or self.path.endswith((":getIamPolicy", ":validateMessage", ":queryTestablePermissions"))


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(message)
        self.code, self.status = code, status


def missing(what: str) -> Refused:
    """What each interface says of what is not there."""
    return Refused(404, "NOT_FOUND", f"{what} not found")


def _everywhere(key: str) -> str:
    """An account's key, whether it was named with its project or with a dash."""
    return key.replace(f"iam/v1/projects/{PROJECT}/serviceAccounts/", "iam/v1/projects/-/serviceAccounts/")


@dataclass
class Cloud:
    """The state, by `api/path`. Only one request at a time touches it (`lock`)."""

    resources: dict[str, Body] = field(default_factory=dict)
    policies: dict[str, list[Body]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    apis: set[str] = field(default_factory=set)
    requests: list[Request] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    unpublishable: bool = False
    """Whether the topic refuses what is published."""
    refusals: dict[str, int] = field(default_factory=dict)
    """How often a policy is not taken yet, by the resource's key: new accounts are not known everywhere at once."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def state(self) -> str:
        """Everything but the requests, to be compared."""
        return json.dumps([self.resources, self.policies, sorted(self.apis), self.executed], sort_keys=True)

    def policy(self, key: str) -> set[tuple[str, str]]:
        """The (role, member) pairs of a resource."""
        return {(each["role"], member) for each in self.policies.get(key, []) for member in each["members"]}

    def answer(self, request: Request) -> Body:
        """What the interface answers.

        Raises:
            Refused: It answers something else than 200.
        """
        with self.lock:
            self.requests.append(request)
            if (policy := self._policy(request)) is not None:
                return policy
            handler = getattr(self, f"_{request.api}", None)
            if handler is None:
                raise missing(request.api)
            answer: Body = handler(request)
            return answer

    def _policy(self, request: Request) -> Body | None:
        path, _, verb = request.path.partition(":")
        if request.api == "storage" and path.endswith("/iam"):
            path, verb = path.removesuffix("/iam"), "getIamPolicy" if request.reads else "setIamPolicy"
        if verb not in ("getIamPolicy", "setIamPolicy"):
            return None
        key = _everywhere(f"{request.api}/{path}")
        if verb == "setIamPolicy":
            if self.refusals.get(key):
                self.refusals[key] -= 1
                raise Refused(400, "INVALID_ARGUMENT", "the account does not exist")
            bindings = (request.body if request.api == "storage" else request.body["policy"]).get("bindings", [])
            self.policies[key] = sorted(bindings, key=lambda each: each["role"])
        return {"version": 1, "etag": "BwXhqDVDPJI=", "bindings": self.policies.get(key, [])}

    def _plain(self, request: Request, key: str, body: Body | None = None) -> Body:
        """Look, create, change or delete: what most interfaces do alike."""
        if request.method in ("POST", "PUT") and body is not None:
            self.resources[key] = body
        if key not in self.resources:
            raise missing(key)
        if request.method == "PATCH":
            mask = request.query.get("updateMask") or request.body.pop("updateMask", "")
            sent = request.body.get("subscription") or request.body.get("topic") or request.body
            self.resources[key] |= {name: sent[name] for name in sent if not mask or name in mask}
        if request.method == "DELETE":
            for gone in [each for each in self.resources if each == key or each.startswith(f"{key}/")]:
                del self.resources[gone]
            self.policies.pop(key, None)
            return {}
        return self.resources[key]

    def _serviceusage(self, request: Request) -> Body:
        if request.method == "GET" and not request.path.endswith("/services"):
            return {"state": "DISABLED"}
        if request.method == "GET":
            return {"services": [{"config": {"name": name}, "state": "ENABLED"} for name in sorted(self.apis)]}
        self.apis |= set(request.body.get("serviceIds", ())) if request.body else set()
        return {"name": "operations/done", "done": True, "response": {"identity": {"email": "agent"}}}

    def _cloudresourcemanager(self, request: Request) -> Body:
        return {"projectId": PROJECT, "projectNumber": NUMBER, "lifecycleState": "ACTIVE", "name": PROJECT}

    def _iam(self, request: Request) -> Body:
        path, _, verb = request.path.partition(":")
        key, body = f"iam/{path}", None
        if verb == "queryTestablePermissions":
            return {}
        if path.endswith("/serviceAccounts"):
            email = f"{request.body['accountId']}@{PROJECT}.iam.gserviceaccount.com"
            name = f"projects/{PROJECT}/serviceAccounts/{email}"
            key, body = f"iam/v1/projects/-/serviceAccounts/{email}", {"name": name, "email": email, "uniqueId": "1"}
        elif path.endswith("/roles"):
            key = f"iam/{path}/{request.body['roleId']}"
            body = request.body["role"] | {"name": key.removeprefix("iam/v1/")}
        elif verb == "undelete" or (request.method == "DELETE" and "/roles/" in path):
            # A deleted role is described, and may be brought back, for a week.
            self.resources[key] |= {"deleted": True}
            if verb == "undelete":
                del self.resources[key]["deleted"]
            return self.resources[key]
        return self._plain(request, _everywhere(key), body)

    def _artifactregistry(self, request: Request) -> Body:
        key, body = f"artifactregistry/{request.path}", None
        done = {"name": f"projects/{PROJECT}/locations/europe-west1/operations/done", "done": True, "response": {}}
        if "/operations/" in request.path:
            return done
        if request.method == "POST":
            name = request.query["repositoryId"]
            key, body = f"{key}/{name}", request.body | {"name": f"{request.path.removeprefix('v1/')}/{name}"}
        answer = self._plain(request, key, body)
        return answer if request.method == "GET" else done

    def _cloudbuild(self, request: Request) -> Body:
        key = "cloudbuild/build"
        if request.method == "POST":
            build = request.body | {"id": "b1", "projectId": PROJECT, "status": "SUCCESS", "logUrl": "https://logs.example"}
            self.resources[key] = build
            for image in build["images"]:
                image = image.replace("${_IMAGE}", build.get("substitutions", {}).get("_IMAGE", ""))
                place, _, rest = image.partition("-docker.pkg.dev/")
                project, repository, name = rest.split("/")
                name, _, tag = name.partition(":")
                base = f"artifactregistry/v1/projects/{project}/locations/{place}/repositories/{repository}/packages/{name}"
                version = f"{base.removeprefix('artifactregistry/v1/')}/versions/sha256:{'a' * 64}"
                self.resources[f"{base}/tags/{tag}"] = {"name": f"{base}/tags/{tag}", "version": version}
            return {"name": "operations/build/acme/b1", "metadata": {"build": build}}
        return self.resources[key]

    def _compute(self, request: Request) -> Body:
        """The project's one subnet, whose Private Google Access is off until it is turned on."""
        path = request.path.removeprefix("compute/v1/")
        if "/operations/" in path or path.endswith("/wait"):
            return {"name": "done", "status": "DONE", "kind": "compute#operation", "selfLink": "https://x/operations/done"}
        project = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}"
        region = f"{project}/regions/europe-west1"
        made = {"name": "default", "privateIpGoogleAccess": False, "region": region, "ipCidrRange": "10.132.0.0/20"}
        made |= {"network": f"{project}/global/networks/default", "selfLink": f"{region}/subnetworks/default"}
        subnet = self.resources.setdefault("compute/subnet", made)
        if request.method == "POST":
            subnet["privateIpGoogleAccess"] = request.body["privateIpGoogleAccess"]
            return {
                "name": "done",
                "status": "DONE",
                "operationType": "setPrivateIpGoogleAccess",
                "region": region,
                "selfLink": f"{region}/operations/done",
                "targetLink": f"{region}/subnetworks/default",
            }
        return subnet

    def _monitoring(self, request: Request) -> Body:
        """Alert policies and notification channels, each with the name that it is given when it is made."""
        kind = request.path.split("/")[3]
        inside = {
            key: value
            for key, value in self.resources.items()
            if key.startswith(f"monitoring/v3/projects/{PROJECT}/{kind}/")
        }
        key, body = f"monitoring/{request.path}", None
        if request.method == "GET" and request.path.endswith(kind):
            return {kind: list(inside.values())}
        if request.method == "POST":
            key = f"{key}/{len(inside) + 1}"
            body = request.body | {"name": key.removeprefix("monitoring/v3/")}
        return self._plain(request, key, body)

    def _cloudscheduler(self, request: Request) -> Body:
        key, body = f"cloudscheduler/{request.path}", None
        if request.method == "POST":
            key, body = f"{key}/{request.body['name'].rpartition('/')[2]}", request.body
        return self._plain(request, key, body)

    def _logging(self, request: Request) -> Body:
        key, body = f"logging/{request.path}", None
        if request.method == "POST":
            key, body = f"{key}/{request.body['name']}", request.body
        return self._plain(request, key, body)

    def _storage(self, request: Request) -> Body:
        key, body = f"storage/{request.path}", None
        if request.path == "b":
            defaults = {"location": "US", "metageneration": "1", "storageClass": "STANDARD", "kind": "storage#bucket"}
            key, body = f"storage/b/{request.body['name']}", defaults | request.body
            body |= {"location": body["location"].upper(), "id": body["name"]}
        elif request.path.endswith("/storageLayout"):
            return {"hierarchicalNamespace": {"enabled": False}}
        elif request.path.endswith("/managedFolders"):
            return {"items": []}
        elif request.path.endswith("/o") and request.method == "GET":
            inside = [value for name, value in self.resources.items() if name.startswith(f"storage/{request.path}/")]
            return {"items": inside}
        elif request.method == "POST" and request.path.startswith("upload/"):
            name, bucket = request.query["name"], request.path.split("/b/")[1].split("/")[0]
            boundary = request.body.split(b"\n", 1)[0].strip()
            self.uploads[name] = request.body.split(boundary)[2].split(b"\n\n", 1)[1].removesuffix(b"\n")
            key = f"storage/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
            size = str(len(self.uploads[name]))
            body = {"name": name, "bucket": bucket, "generation": "1", "size": size, "metageneration": "1"}
        return self._plain(request, key, body)

    def _run(self, request: Request) -> Body:
        kind = request.path.split("/")[-2 if request.method != "POST" else -1]
        key = f"run/{request.path}"
        if request.path.endswith(":run"):
            return self._execution(request)
        if request.method in ("POST", "PUT"):
            name = request.body["metadata"]["name"]
            if request.method == "POST":
                key = f"{key}/{name}"
            return self._plain(request, key, self._deployed(key, request.body, kind))
        if request.method == "DELETE":  # its policy is kept under another of its names
            name = request.path.rpartition("/")[2]
            self.policies = {each: value for each, value in self.policies.items() if not each.endswith(f"/services/{name}")}
        return self._plain(request, key)

    def _deployed(self, key: str, body: Body, kind: str) -> Body:
        """A service or job that became ready at once; what is as it was makes no new generation, and so no new revision."""
        before = self.resources.get(key, {}).get("metadata", {}).get("generation", 0)
        same = key in self.resources and self.resources[key]["spec"] == body["spec"]
        generation = before if same else before + 1
        name = body["metadata"]["name"]
        metadata = body["metadata"] | {"generation": generation, "selfLink": "/x", "uid": "u", "resourceVersion": "r"}
        status: Body = {"observedGeneration": generation, "conditions": [{"type": "Ready", "status": "True"}]}
        if kind == "services":
            host = f"https://{name}-{NUMBER}.europe-west1.run.app"
            metadata["annotations"] = metadata.get("annotations", {}) | {"run.googleapis.com/urls": json.dumps([host])}
            revision = f"{name}-{generation:05}"
            status |= {"latestReadyRevisionName": revision, "latestCreatedRevisionName": revision, "url": host}
            status["conditions"] += [{"type": each, "status": "True"} for each in ("ConfigurationsReady", "RoutesReady")]
            status["traffic"] = [{"revisionName": revision, "percent": 100, "latestRevision": True}]
        return body | {"metadata": metadata, "status": status}

    def _execution(self, request: Request) -> Body:
        """The command of a job, done at once: `init` creates the lease record, as the real one would."""
        job = self.resources[f"run/{request.path.partition(':')[0]}"]
        container = job["spec"]["template"]["spec"]["template"]["spec"]["containers"][0]
        overrides = (request.body or {}).get("overrides", {}).get("containerOverrides", [{}])[0]
        self.executed.append(" ".join(container["command"] + overrides.get("args", container["args"])))
        store = {each["name"]: each.get("value", "") for each in container["env"]}["REPLICA_URL"]
        bucket, _, prefix = store.removeprefix("gs://").partition("/")
        record = f"{prefix}/lease.json"
        self.resources[f"storage/b/{bucket}/o/{urllib.parse.quote(record, safe='')}"] = {
            "name": record,
            "bucket": bucket,
            "generation": "1",
        }
        name = f"{job['metadata']['name']}-1"
        execution: Body = {
            "apiVersion": "run.googleapis.com/v1",
            "kind": "Execution",
            "metadata": {"name": name, "namespace": PROJECT, "generation": 1, "labels": {}, "annotations": {}},
            "spec": {"taskCount": 1, "template": job["spec"]["template"]["spec"]["template"]},
            "status": {
                "observedGeneration": 1,
                "succeededCount": 1,
                "startTime": "2026-01-01T00:00:00Z",
                "completionTime": "2026-01-01T00:00:01Z",
                "conditions": [
                    {"type": each, "status": "True"}
                    for each in ("Completed", "ResourcesAvailable", "Started", "ContainerReady", "Retry")
                ],
            },
        }
        self.resources[f"run/apis/run.googleapis.com/v1/namespaces/{PROJECT}/executions/{name}"] = execution
        return execution

    def _pubsub(self, request: Request) -> Body:
        path, _, verb = request.path.partition(":")
        if verb == "validateMessage":
            return {}
        if verb == "publish" and self.unpublishable:
            raise missing(path)
        if verb == "publish":
            self.published += [each["data"] for each in request.body["messages"]]
            return {"messageIds": ["1"]}
        key, body = f"pubsub/{path}", None
        if path.endswith("/schemas") and request.method == "POST":
            name = request.query["schemaId"]
            key, body = f"{key}/{name}", request.body | {"name": f"{path.removeprefix('v1/')}/{name}", "revisionId": "1"}
        elif request.method == "PUT":
            body = request.body | {"name": path.removeprefix("v1/")}
        return self._plain(request, key, body)


class _Handler(BaseHTTPRequestHandler):
    """From HTTP to a `Request` and back."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)  # a whole URL when this is the proxy
        api, _, path = url.path.lstrip("/").partition("/")
        if path.startswith("storage/v1/"):
            path = path.removeprefix("storage/v1/")
        if api == "upload":
            api, path = "storage", url.path.lstrip("/")
        try:
            body = json.loads(content) if content else {}
        except ValueError:
            body = content
        query = dict(urllib.parse.parse_qsl(url.query))
        try:
            code, answer = 200, self.server.cloud.answer(Request(url.hostname or "", api, self.command, path, query, body))
        except Refused as error:
            code, answer = error.code, {"error": {"code": error.code, "status": error.status, "message": str(error)}}
        sent = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815  # the standard library's names

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, cloud: Cloud) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cloud = cloud


class Serving:
    """The cloud on two loopback ports, plain and with TLS; `environment` points gcloud at them and at nothing else.

    Args:
        cloud: The state.
        folder: For gcloud's own configuration, and the certificate.
    """

    def __init__(self, cloud: Cloud, folder: Path) -> None:
        self._certificate, key = _certificate(folder)
        self._servers = [_Server(cloud), _Server(cloud)]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._certificate, key)
        self._servers[1].socket = context.wrap_socket(self._servers[1].socket, server_side=True)
        self._threads = [threading.Thread(target=each.serve_forever, daemon=True) for each in self._servers]
        self._folder = folder

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """The variables."""
        plain, secure = (each.server_address[1] for each in self._servers)
        endpoints = {api: f"http://127.0.0.1:{plain}/{api}/" for api in PLAIN}
        endpoints |= {"pubsub": f"https://127.0.0.1:{secure}/pubsub/", "run": "http://run.invalid/run/"}
        return {
            **{f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api.upper()}": url for api, url in endpoints.items()},
            "HTTP_PROXY": f"http://127.0.0.1:{plain}",
            "http_proxy": f"http://127.0.0.1:{plain}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": str(self._certificate),
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
            "CLOUDSDK_CORE_PROJECT": "",
            "CLOUDSDK_CONFIG": str(self._folder / "gcloud"),
        }


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate, secret = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return certificate, secret
