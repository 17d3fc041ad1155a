"""The configuration of a run, as the other modules use it.

`config_schema` holds every key with its default, `config_load` reads YAML and overrides strictly,
`config_check` refuses what cannot run, `config_batch` cuts the global batch, `config_save` writes, compares
and fingerprints. Beside them, `config_published` reads experiment files of the published code and
`config_deepspeed` the DeepSpeed JSON.
"""

from ijepa_ds.config_batch import BatchPlan, plan_batch
from ijepa_ds.config_check import Problem, check, problems
from ijepa_ds.config_load import from_text, load
from ijepa_ds.config_save import difference, fingerprint, save_resolved, to_text
from ijepa_ds.config_schema import (
    Config,
    ConfigError,
    DataConfig,
    MasksConfig,
    ModelConfig,
    OptimizationConfig,
    PredictorConfig,
    RunConfig,
    flatten,
)

__all__ = [
    "BatchPlan",
    "Config",
    "ConfigError",
    "DataConfig",
    "MasksConfig",
    "ModelConfig",
    "OptimizationConfig",
    "PredictorConfig",
    "Problem",
    "RunConfig",
    "check",
    "difference",
    "fingerprint",
    "flatten",
    "from_text",
    "load",
    "plan_batch",
    "problems",
    "save_resolved",
    "to_text",
]
