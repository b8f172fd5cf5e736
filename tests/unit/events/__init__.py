"""Tests of declared events: what a declaration may be, and what follows from it."""
