"""The checks of `worker doctor`. Each returns findings and changes nothing."""
