"""From a delivery to its acknowledgement.

It knows neither HTTP nor the bucket: `http` is the door, and `confirmation` asks whether a commit is stored.
"""
