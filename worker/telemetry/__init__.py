"""Logs, metrics and traces. It only listens; nothing waits for it."""
