"""The door: paths, statuses, bodies and tokens. Nothing outside this package knows an HTTP status but `errors`."""
