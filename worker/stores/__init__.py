"""Where the data lives, as the supervisor sees it: one engine's whole side of a life, for each engine. See store.py."""
