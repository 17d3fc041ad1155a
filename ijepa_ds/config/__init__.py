"""The configuration of a run: schema, strict reading, checks, writing and fingerprints; the DeepSpeed JSON; schedules."""

from ijepa_ds.config.batch import BatchPlan, plan_batch
from ijepa_ds.config.checks import check, problems
from ijepa_ds.config.loading import from_text, load, load_config, stored
from ijepa_ds.config.objective import ObjectiveConfig, TargetsConfig
from ijepa_ds.config.precision import AUTO, Precision, resolve_auto
from ijepa_ds.config.saving import LENGTH, difference, fingerprint, save_resolved, to_text
from ijepa_ds.config.schema import Config, ConfigError, DataConfig, OptimizationConfig, Problem, RunConfig, flatten
from ijepa_ds.config.sizes import ModelConfig, PredictorConfig
from ijepa_ds.config.stages import at_step
from ijepa_ds.masks.settings import MasksConfig

__all__ = [
    "AUTO",
    "LENGTH",
    "BatchPlan",
    "Config",
    "ConfigError",
    "DataConfig",
    "MasksConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizationConfig",
    "PredictorConfig",
    "Precision",
    "Problem",
    "RunConfig",
    "TargetsConfig",
    "at_step",
    "check",
    "difference",
    "fingerprint",
    "flatten",
    "from_text",
    "load",
    "load_config",
    "plan_batch",
    "problems",
    "resolve_auto",
    "save_resolved",
    "stored",
    "to_text",
]
