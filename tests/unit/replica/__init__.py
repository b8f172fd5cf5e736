"""Tests of replica."""
