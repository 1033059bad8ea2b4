"""central-sync: the only service that may call the centre, each class of call behind a circuit breaker of its own."""
