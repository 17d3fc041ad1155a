"""Whether a rung was evaluated with the ladder's settings: one law must never join scores of two protocols."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

from ijepa_ds.config import Config
from ijepa_ds.data.values import Values
from ijepa_ds.evals.options import apply_preset, check_used, settings_of
from ijepa_ds.options.evals import add_arguments
from ijepa_ds.scale.ladder import Evaluation

_MACHINE = ("device", "threads", "batch_size", "token_gib", "max_pixels")  # they change no score


class _Images(NamedTuple):
    """What an evaluation takes from the encoder's metadata."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def wanted_settings(cfg: Config, evaluation: Evaluation) -> dict[str, Any]:
    """The settings that the ladder's `eval.options` mean for a run, as `result.json` has them.

    Raises:
        ValueError: options that `ijepa-ds eval all` does not know or use.
    """
    parser = _Parser(prog="ijepa-ds eval", add_help=False)
    add_arguments(parser)
    given = ["all", "--checkpoint", "-", "--train", evaluation.train, "--test", evaluation.test, "--out", "-"]
    args = parser.parse_args([*given, *evaluation.options])
    check_used(args)
    apply_preset(args)
    settings = settings_of(args, _Images(cfg.data.crop_size, cfg.data.mean, cfg.data.std), 0)
    settings = replace(settings, values=Values.of(cfg.data))
    settings.check()
    return json.loads(json.dumps(settings.plain()))


def other_settings(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of the settings in which an evaluation differs from what is wanted; settings of the machine do not count."""
    return [name for name in {**wanted, **found} if name not in _MACHINE and found.get(name) != wanted.get(name)]
