"""What operators do, as functions. How they type it is in `cli`."""
