"""Events as an adopter writes them."""
