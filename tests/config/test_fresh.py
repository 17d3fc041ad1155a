"""What a new run is refused for, and a run that exists is not."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from ijepa_ds.config import ConfigError, MasksConfig, save_resolved
from ijepa_ds.config.fresh import fresh_problems
from ijepa_ds.training import job
from tests.config.test_checks import GOOD, changed


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        ("masks", {"sampler": "unbiased", "min_keep": 1}, "masks.min_keep: has no effect with masks.sampler: unbiased; remove"),
        ("masks", {"sampler": "unbiased", "truncation_group": 64}, "masks.truncation_group: has no effect with masks.sampler"),
        ("model", {"recompute": "selective"}, "model.recompute: has no effect with model.activation_checkpointing: false"),
        ("optimization", {"lr": 1e-4}, "optimization.start_lr: 0.0002 is above optimization.lr 0.0001, so the warm-up would"),
        (
            "optimization",
            {"batch_size": 3000},
            "optimization.batch_size: 3000 images on 8 devices are 375 passes of 1, because no micro-batch may cross a border "
            "of masks.truncation_group (128); use 2560 or 3072, or another group",
        ),
    ],
)
def test_it_names_key_and_remedy(section: str, values: dict[str, object], line: str) -> None:
    found = [str(problem) for problem in fresh_problems(changed(section, **values), 8)]
    assert len(found) == 1 and found[0].startswith(line), found


def test_what_has_an_effect_is_not_refused() -> None:
    assert fresh_problems(GOOD, 8) == []
    assert fresh_problems(changed("masks", min_keep=8, truncation_group=64), 8) == []
    assert fresh_problems(changed("masks", sampler="unbiased", context_tokens=60), 8) == []
    assert fresh_problems(changed("model", recompute="selective", activation_checkpointing=True), 8) == []
    assert fresh_problems(changed("optimization", lr=1e-4, warmup_epochs=None, warmup_steps=0), 8) == []
    assert fresh_problems(changed("optimization", batch_size=2560), 8) == []


def test_a_run_that_exists_continues_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cfg = replace(GOOD, run=replace(GOOD.run, dir=str(out)), masks=MasksConfig(sampler="unbiased", min_keep=1))
    save_resolved(cfg, tmp_path / "run.yaml")
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 1}}')
    arguments = Namespace(config=tmp_path / "run.yaml", deepspeed_config=tmp_path / "zero.json", overrides=[])
    with pytest.raises(ConfigError, match=r"masks\.min_keep: has no effect"):
        job.read(arguments, 8)
    assert job.read(arguments, 8, new_run=False)[0].masks == cfg.masks  # a benchmark
    out.mkdir()
    save_resolved(cfg, out / "config.yaml")
    assert job.read(arguments, 8)[0].masks == cfg.masks
