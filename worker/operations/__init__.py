"""The operators' actions, as functions. How they type it is in `cli`."""
