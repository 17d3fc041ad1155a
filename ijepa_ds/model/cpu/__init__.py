"""Settings of training on a CPU that a GPU does not need."""

from ijepa_ds.model.cpu.rates import Rates, measure_rates
from ijepa_ds.model.cpu.tuning import give_memory_back, keep_memory, tune

__all__ = ["Rates", "give_memory_back", "keep_memory", "measure_rates", "tune"]
