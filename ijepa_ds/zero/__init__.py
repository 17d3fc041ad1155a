"""ZeRO's master weights and Adam moments at every stage, and the sharded EMA."""
