output "url" {
  description = "The service's address, which is also the audience of tokens."
  value       = local.url
}

output "replica_url" {
  description = "Where the data lives."
  value       = "gs://${local.bucket}/${var.prefix}"
}

output "job" {
  description = "The job that runs the operator's commands; `init` unless it is told otherwise."
  value       = "${var.service}-command"
}
