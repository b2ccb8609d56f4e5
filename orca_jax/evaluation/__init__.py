"""What a model is evaluated on and how its replies become right or wrong: no JAX, no network in here."""
