"""DeepSpeed's ZeRO seen from outside: where master weights are, and the sharded EMA built on them."""
