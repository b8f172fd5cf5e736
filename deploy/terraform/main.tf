# What deploy/deploy.sh makes, for teams that keep their project in Terraform: the same names, the same rights, and the same files
# for the service, the job and the alerts. It makes no image, and runs no `init`: see README.md.

data "google_project" "this" {
  project_id = var.project
}

locals {
  number  = data.google_project.this.number
  url     = "https://${var.service}-${local.number}.${var.region}.run.app"
  bucket  = var.bucket != "" ? var.bucket : "${var.project}-users"
  agent   = "serviceAccount:service-${local.number}@gcp-sa-pubsub.iam.gserviceaccount.com"
  drilled = var.drill_schedule != ""
  jobs = merge(
    { "${var.service}-command" = { verb = "init", retries = 3 } },
    local.drilled ? { "${var.service}-drill" = { verb = "drill", retries = 0 } } : {},
  )
  values = {
    SERVICE                 = var.service
    JOB                     = "${var.service}-command"
    PROJECT                 = var.project
    RUNTIME                 = google_service_account.runtime.email
    PUSHER                  = google_service_account.pusher.email
    IMAGE                   = var.image
    URL                     = local.url
    REPLICA_URL             = "gs://${local.bucket}/${var.prefix}"
    SUBSCRIPTION            = var.subscription
    DEAD_LETTERS            = var.dead_letters
    ACK_DEADLINE_SECONDS    = var.ack_deadline_seconds
    REQUEST_TIMEOUT_SECONDS = var.ack_deadline_seconds + 30
    CPU                     = var.cpu
    MEMORY                  = var.memory
    DATA_SIZE               = ""
    INGRESS                 = var.ingress
    NETWORK                 = var.network
    SUBNET                  = var.subnet
    OPERATORS               = join(",", concat(var.operators, [google_service_account.runtime.email]))
    CHECKPOINT_HOURS        = var.checkpoint_hours
    LOG_LEVEL               = var.log_level
    VERB                    = "init"
    RETRIES                 = 3
    CHANNEL                 = ""
  }
  template = yamldecode(templatefile("${path.module}/../service.yaml", local.values)).spec.template.spec
  serving  = local.template.containers[0]
  working  = yamldecode(templatefile("${path.module}/../job.yaml", local.values)).spec.template.spec.template.spec
  policies = {
    for file in fileset("${path.module}/../alert-policies", "*.yaml") :
    trimsuffix(file, ".yaml") => yamldecode(templatefile("${path.module}/../alert-policies/${file}", local.values))
  }
}

resource "google_project_service" "api" {
  for_each = toset(concat(
    ["artifactregistry", "cloudbuild", "cloudresourcemanager", "compute", "iam", "iamcredentials"],
    ["logging", "monitoring", "pubsub", "run", "storage"],
    local.drilled ? ["cloudscheduler"] : [],
  ))
  project            = var.project
  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false
}

# The data. It is never deleted with the rest.

resource "google_storage_bucket" "data" {
  project                     = var.project
  name                        = local.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  soft_delete_policy {
    retention_duration_seconds = var.soft_delete_days * 86400
  }
  lifecycle {
    prevent_destroy = true
  }
}

# Where the image goes, and where its base images come from.

resource "google_artifact_registry_repository" "images" {
  project       = var.project
  location      = var.region
  repository_id = var.repository
  format        = "DOCKER"
  docker_config {
    immutable_tags = true
  }
  cleanup_policies {
    id     = "keep-newest"
    action = "KEEP"
    most_recent_versions {
      keep_count = 10
    }
  }
  cleanup_policies {
    id     = "delete-old"
    action = "DELETE"
    condition {
      older_than = "7776000s"
    }
  }
  depends_on = [google_project_service.api]
}

resource "google_artifact_registry_repository" "docker_hub" {
  project       = var.project
  location      = var.region
  repository_id = "${var.repository}-docker-hub"
  format        = "DOCKER"
  mode          = "REMOTE_REPOSITORY"
  remote_repository_config {
    docker_repository {
      public_repository = "DOCKER_HUB"
    }
  }
  depends_on = [google_project_service.api]
}

resource "google_storage_bucket" "sources" {
  project                     = var.project
  name                        = "${var.project}-users-build"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true
  soft_delete_policy {
    retention_duration_seconds = 0
  }
  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age = 1
    }
  }
}

# Accounts, without keys, and what each may do; docs/security.md says why.

resource "google_service_account" "runtime" {
  project      = var.project
  account_id   = var.service
  display_name = "Runs ${var.service}"
}

resource "google_service_account" "pusher" {
  project      = var.project
  account_id   = "${var.service}-push"
  display_name = "Pushes to ${var.service}"
}

resource "google_service_account" "builder" {
  project      = var.project
  account_id   = "${var.service}-build"
  display_name = "Builds ${var.service}'s image"
}

resource "google_service_account" "scheduler" {
  count        = local.drilled ? 1 : 0
  project      = var.project
  account_id   = "${var.service}-drill"
  display_name = "Starts ${var.service}'s drills"
}

resource "google_storage_bucket_iam_member" "sources" {
  bucket = google_storage_bucket.sources.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.builder.member
}

resource "google_artifact_registry_repository_iam_member" "images" {
  project    = var.project
  location   = var.region
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.builder.member
}

resource "google_artifact_registry_repository_iam_member" "docker_hub" {
  project    = var.project
  location   = var.region
  repository = google_artifact_registry_repository.docker_hub.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.builder.member
}

resource "google_project_iam_member" "build_log" {
  project = var.project
  role    = "roles/logging.logWriter"
  member  = google_service_account.builder.member
}

resource "google_storage_bucket_iam_member" "data" {
  bucket = google_storage_bucket.data.name
  role   = "roles/storage.objectUser"
  member = google_service_account.runtime.member
}

resource "google_project_iam_custom_role" "snapshots" {
  project     = var.project
  role_id     = "${replace(var.service, "-", "_")}_snapshots"
  title       = "Snapshots of ${var.service}"
  description = "What checkpoints and replay need; see docs/security.md"
  permissions = [
    "pubsub.snapshots.create", "pubsub.snapshots.delete", "pubsub.snapshots.get", "pubsub.snapshots.list",
    "pubsub.snapshots.seek",
  ]
}

resource "google_project_iam_member" "snapshots" {
  project = var.project
  role    = google_project_iam_custom_role.snapshots.id
  member  = google_service_account.runtime.member
}

resource "google_service_account_iam_member" "push_tokens" {
  service_account_id = google_service_account.pusher.name
  role               = "roles/iam.serviceAccountOpenIdTokenCreator"
  member             = local.agent
  depends_on         = [google_project_service.api]
}

# The job first: it makes the store, without which the service refuses to start.

resource "google_cloud_run_v2_job" "command" {
  for_each            = local.jobs
  project             = var.project
  location            = var.region
  name                = each.key
  deletion_protection = false
  template {
    template {
      service_account = google_service_account.runtime.email
      max_retries     = each.value.retries
      timeout         = "${local.working.timeoutSeconds}s"
      vpc_access {
        egress = "ALL_TRAFFIC"
        network_interfaces {
          network    = var.network
          subnetwork = var.subnet
        }
      }
      containers {
        image   = var.image
        command = ["python"]
        args    = ["-m", "worker", each.value.verb]
        resources {
          limits = local.working.containers[0].resources.limits
        }
        dynamic "env" {
          for_each = local.working.containers[0].env
          content {
            name  = env.value.name
            value = env.value.value
          }
        }
      }
    }
  }
  depends_on = [google_project_service.api, google_storage_bucket_iam_member.data]
}

resource "google_cloud_run_v2_service" "worker" {
  project             = var.project
  location            = var.region
  name                = var.service
  ingress             = { internal = "INGRESS_TRAFFIC_INTERNAL_ONLY", internal-and-cloud-load-balancing = "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER", all = "INGRESS_TRAFFIC_ALL" }[var.ingress]
  deletion_protection = false
  # The check of IAM verifies tokens; TOKENS_VERIFIED_BY=platform holds only with it.
  invoker_iam_disabled = false
  template {
    service_account                  = google_service_account.runtime.email
    execution_environment            = "EXECUTION_ENVIRONMENT_GEN2"
    max_instance_request_concurrency = local.template.containerConcurrency
    timeout                          = "${local.template.timeoutSeconds}s"
    scaling {
      min_instance_count = 1
      max_instance_count = 1
    }
    containers {
      image = var.image
      ports {
        name           = local.serving.ports[0].name
        container_port = local.serving.ports[0].containerPort
      }
      resources {
        limits            = local.serving.resources.limits
        cpu_idle          = false
        startup_cpu_boost = true
      }
      dynamic "env" {
        for_each = local.serving.env
        content {
          name  = env.value.name
          value = env.value.value
        }
      }
      startup_probe {
        http_get {
          path = local.serving.startupProbe.httpGet.path
          port = local.serving.startupProbe.httpGet.port
        }
        period_seconds    = local.serving.startupProbe.periodSeconds
        timeout_seconds   = local.serving.startupProbe.timeoutSeconds
        failure_threshold = local.serving.startupProbe.failureThreshold
      }
      liveness_probe {
        http_get {
          path = local.serving.livenessProbe.httpGet.path
          port = local.serving.livenessProbe.httpGet.port
        }
        period_seconds    = local.serving.livenessProbe.periodSeconds
        timeout_seconds   = local.serving.livenessProbe.timeoutSeconds
        failure_threshold = local.serving.livenessProbe.failureThreshold
      }
    }
  }
  traffic {
    type    = "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST"
    percent = 100
  }
  depends_on = [google_cloud_run_v2_job.command, google_storage_bucket_iam_member.data]
}

# All who may call it: an account that is not named here loses the right.

resource "google_cloud_run_v2_service_iam_binding" "invokers" {
  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_service.worker.name
  role     = "roles/run.invoker"
  members = concat(
    [google_service_account.pusher.member, google_service_account.runtime.member],
    [for each in var.operators : "serviceAccount:${each}"],
    var.invokers,
  )
}

# Pub/Sub: schema, topic, dead letters, and last the subscription, which delivers from then on.

resource "google_pubsub_schema" "created" {
  project    = var.project
  name       = var.schema
  type       = "AVRO"
  definition = file("${path.module}/../schema.avsc")
  depends_on = [google_project_service.api]
}

resource "google_pubsub_topic" "users" {
  project                    = var.project
  name                       = var.topic
  message_retention_duration = "604800s"
  schema_settings {
    schema   = google_pubsub_schema.created.id
    encoding = "JSON"
  }
}

resource "google_pubsub_topic" "dead_letters" {
  project    = var.project
  name       = var.dead_letters
  depends_on = [google_project_service.api]
}

resource "google_pubsub_subscription" "dead_letters" {
  project                    = var.project
  name                       = var.dead_letters
  topic                      = google_pubsub_topic.dead_letters.id
  retain_acked_messages      = true
  message_retention_duration = "2678400s"
  expiration_policy {
    ttl = ""
  }
}

resource "google_pubsub_topic_iam_member" "dead_letters" {
  project = var.project
  topic   = google_pubsub_topic.dead_letters.name
  role    = "roles/pubsub.publisher"
  member  = local.agent
}

resource "google_pubsub_subscription" "push" {
  project                    = var.project
  name                       = var.subscription
  topic                      = google_pubsub_topic.users.id
  ack_deadline_seconds       = var.ack_deadline_seconds
  retain_acked_messages      = true
  message_retention_duration = "604800s"
  expiration_policy {
    ttl = ""
  }
  push_config {
    push_endpoint = "${local.url}/"
    oidc_token {
      service_account_email = google_service_account.pusher.email
      audience              = local.url
    }
  }
  retry_policy {
    minimum_backoff = "1s"
    maximum_backoff = "600s"
  }
  dead_letter_policy {
    dead_letter_topic     = google_pubsub_topic.dead_letters.id
    max_delivery_attempts = 100
  }
  depends_on = [
    google_cloud_run_v2_service_iam_binding.invokers,
    google_service_account_iam_member.push_tokens,
    google_pubsub_topic_iam_member.dead_letters,
  ]
}

resource "google_pubsub_subscription_iam_member" "push" {
  for_each = {
    agent  = { role = "roles/pubsub.subscriber", member = local.agent }
    worker = { role = "roles/pubsub.subscriber", member = google_service_account.runtime.member }
    viewer = { role = "roles/pubsub.viewer", member = google_service_account.runtime.member }
  }
  project      = var.project
  subscription = google_pubsub_subscription.push.name
  role         = each.value.role
  member       = each.value.member
}

# A drill by schedule. A verdict is a verdict: neither the job nor its start is tried again.

resource "google_cloud_run_v2_job_iam_member" "drill" {
  count    = local.drilled ? 1 : 0
  project  = var.project
  location = var.region
  name     = google_cloud_run_v2_job.command["${var.service}-drill"].name
  role     = "roles/run.invoker"
  member   = google_service_account.scheduler[0].member
}

resource "google_cloud_scheduler_job" "drill" {
  count    = local.drilled ? 1 : 0
  project  = var.project
  region   = var.region
  name     = "${var.service}-drill"
  schedule = var.drill_schedule
  retry_config {
    retry_count = 0
  }
  http_target {
    http_method = "POST"
    uri         = "https://run.googleapis.com/v2/projects/${var.project}/locations/${var.region}/jobs/${var.service}-drill:run"
    oauth_token {
      service_account_email = google_service_account.scheduler[0].email
    }
  }
}

# Alerts, from the same files as the script's.

resource "google_monitoring_notification_channel" "email" {
  count        = var.alert_email != "" ? 1 : 0
  project      = var.project
  display_name = var.service
  type         = "email"
  labels       = { email_address = var.alert_email }
  depends_on   = [google_project_service.api]
}

resource "google_logging_metric" "starts" {
  project     = var.project
  name        = "${var.service}-starts"
  description = "Starts of ${var.service}'s instances"
  filter      = "resource.type=\"cloud_run_revision\" AND resource.labels.service_name=\"${var.service}\" AND jsonPayload.action=\"worker.starting\""
  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
  }
}

resource "google_monitoring_alert_policy" "alert" {
  for_each              = local.policies
  project               = var.project
  display_name          = each.value.displayName
  combiner              = each.value.combiner
  user_labels           = each.value.userLabels
  notification_channels = google_monitoring_notification_channel.email[*].name
  documentation {
    mime_type = each.value.documentation.mimeType
    content   = each.value.documentation.content
  }
  alert_strategy {
    auto_close = each.value.alertStrategy.autoClose
    dynamic "notification_rate_limit" {
      for_each = try([each.value.alertStrategy.notificationRateLimit], [])
      content {
        period = notification_rate_limit.value.period
      }
    }
  }
  dynamic "conditions" {
    for_each = each.value.conditions
    content {
      display_name = conditions.value.displayName
      dynamic "condition_threshold" {
        for_each = try([conditions.value.conditionThreshold], [])
        content {
          filter          = condition_threshold.value.filter
          comparison      = condition_threshold.value.comparison
          threshold_value = condition_threshold.value.thresholdValue
          duration        = condition_threshold.value.duration
          aggregations {
            alignment_period     = condition_threshold.value.aggregations[0].alignmentPeriod
            per_series_aligner   = condition_threshold.value.aggregations[0].perSeriesAligner
            cross_series_reducer = try(condition_threshold.value.aggregations[0].crossSeriesReducer, null)
            group_by_fields      = try(condition_threshold.value.aggregations[0].groupByFields, null)
          }
        }
      }
      dynamic "condition_matched_log" {
        for_each = try([conditions.value.conditionMatchedLog], [])
        content {
          filter = condition_matched_log.value.filter
        }
      }
    }
  }
  depends_on = [google_logging_metric.starts]
}
