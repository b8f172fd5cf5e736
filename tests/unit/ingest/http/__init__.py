"""Tests of ingest.http."""
