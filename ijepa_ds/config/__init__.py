"""The configuration of a run, as the other modules use it.

`config_schema` holds every key with its default, `config_load` reads YAML and overrides strictly,
`config_check` refuses what cannot run, `config_stages` says what changes while it runs, `config_batch` cuts the
global batch, `config_save` writes, compares and fingerprints. Beside them, `config_published` reads experiment
files of the published code and `config_deepspeed` the DeepSpeed JSON.
"""

from ijepa_ds.config.batch import BatchPlan, plan_batch
from ijepa_ds.config.checks import Problem, check, problems
from ijepa_ds.config.loading import from_text, load
from ijepa_ds.config.saving import LENGTH, difference, fingerprint, save_resolved, to_text
from ijepa_ds.config.schema import (
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
from ijepa_ds.config.stages import at_step

__all__ = [
    "LENGTH",
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
    "at_step",
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
