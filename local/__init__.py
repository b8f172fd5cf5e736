"""A laptop's cloud: what stands in for Google Cloud when the project runs and is tested on one machine."""
