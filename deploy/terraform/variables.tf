# The names and defaults are those of deploy/deploy.sh, in small letters; docs/deploy.md explains them.

variable "project" {
  type        = string
  description = "The project's id."
}

variable "region" {
  type        = string
  description = "Where the service and its bucket are."
}

variable "image" {
  type        = string
  description = "The image, by tag or digest; `make deploy` builds it, or any pipeline from the Dockerfile."
}

variable "service" {
  type        = string
  default     = "users-worker"
  description = "The Cloud Run service; its accounts and its job are named after it."
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,22}[a-z0-9]$", var.service))
    error_message = "Choose 6 to 24 small letters, digits and hyphens, beginning with a letter."
  }
}

variable "bucket" {
  type        = string
  default     = ""
  description = "The bucket that holds the data; PROJECT-users without it."
}

variable "prefix" {
  type        = string
  default     = "prod"
  description = "The store's place in the bucket."
}

variable "repository" {
  type        = string
  default     = "solowriter"
  description = "The Artifact Registry repository of the image."
}

variable "topic" {
  type        = string
  default     = "users"
  description = "The topic."
}

variable "schema" {
  type        = string
  default     = "user-created"
  description = "The topic's schema."
}

variable "subscription" {
  type        = string
  default     = "users-worker"
  description = "The push subscription."
}

variable "dead_letters" {
  type        = string
  default     = "users-dead-letters"
  description = "The topic of dead letters, and the subscription that keeps them."
}

variable "cpu" {
  type        = string
  default     = "1"
  description = "Above 4Gi of memory 2, above 8Gi 4, above 16Gi 6, above 24Gi 8."
}

variable "memory" {
  type        = string
  default     = "1Gi"
  description = "Four times the database, and six times QUEUE_MAX_BYTES."
}

variable "ingress" {
  type        = string
  default     = "internal"
  description = "internal, internal-and-cloud-load-balancing or all."
}

variable "network" {
  type        = string
  default     = "default"
  description = "The network through which the job's commands reach the service."
}

variable "subnet" {
  type        = string
  default     = "default"
  description = "Its subnet, which must have Private Google Access."
}

variable "ack_deadline_seconds" {
  type        = number
  default     = 60
  description = "For the service and for the subscription."
  validation {
    condition     = var.ack_deadline_seconds >= 26 && var.ack_deadline_seconds <= 600
    error_message = "Give 26 to 600 seconds."
  }
}

variable "operators" {
  type        = list(string)
  default     = []
  description = "Service accounts that may resolve rejections; people impersonate them."
  validation {
    condition     = alltrue([for each in var.operators : endswith(each, ".gserviceaccount.com")])
    error_message = "Give service accounts: a person's token cannot be made for the service."
  }
}

variable "invokers" {
  type        = list(string)
  default     = []
  description = "Other members that may call the service; all that are not named are removed."
}

variable "checkpoint_hours" {
  type        = number
  default     = 0
  description = "As for the worker."
}

variable "log_level" {
  type        = string
  default     = "info"
  description = "As for the worker."
}

variable "soft_delete_days" {
  type        = number
  default     = 7
  description = "How long Cloud Storage keeps what was deleted or overwritten."
}

variable "drill_schedule" {
  type        = string
  default     = ""
  description = "When to drill, as cron writes it; empty for never."
}

variable "alert_email" {
  type        = string
  default     = ""
  description = "Where alerts are sent; empty for nowhere."
}
