"""The public name of the sharded EMA: `from ijepa_ds.ema import ShardedEMA`."""

from ijepa_ds.zero.ema import ShardedEMA

__all__ = ["ShardedEMA"]
