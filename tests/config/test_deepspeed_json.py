"""The DeepSpeed JSON is refused where it is wrong, and completed from the run where it is right."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ijepa_ds.config import BatchPlan, Config, ConfigError, DataConfig, ModelConfig, OptimizationConfig, RunConfig
from ijepa_ds.config import deepspeed_keys as keys
from ijepa_ds.config.deepspeed_json import load_deepspeed

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
CONFIG = Config(
    run=RunConfig(dir="runs/x"),
    data=DataConfig(source="images"),
    model=ModelConfig(name="tiny"),
    optimization=OptimizationConfig(batch_size=64, epochs=1.0, warmup_epochs=0.0),
)
WHOLE = BatchPlan(micro_batch=16, accumulation=1, world_size=4)
IN_PARTS = BatchPlan(micro_batch=4, accumulation=4, world_size=4)


def write(tmp_path: Path, text: str | dict[str, object]) -> Path:
    path = tmp_path / "ds.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text, indent=2), encoding="utf-8")
    return path


def refused(path: Path, plan: BatchPlan = WHOLE) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_deepspeed(path, CONFIG, plan)
    return [line.replace(f"{path.parent}/", "") for line in error.value.problems]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_compiled_blocks_go_with_every_stage(stage: int, tmp_path: Path) -> None:
    compiled = replace(CONFIG, model=replace(CONFIG.model, compile=True))
    assert load_deepspeed(write(tmp_path, {"zero_optimization": {"stage": stage}}), compiled, WHOLE)


@pytest.mark.parametrize(("ranks", "shared"), [(1, False), (9, False), (10, True), (512, True)])
def test_many_ranks_share_the_reduction_of_a_bucket(ranks: int, shared: bool, tmp_path: Path) -> None:
    plan = BatchPlan(world_size=ranks, micro_batch=1, accumulation=1)
    name = "use_multi_rank_bucket_allreduce"
    for stage in (1, 2):
        zero = {"stage": stage}
        assert load_deepspeed(write(tmp_path, {"zero_optimization": zero}), CONFIG, plan)["zero_optimization"][name] == shared
        written = load_deepspeed(write(tmp_path, {"zero_optimization": zero | {name: not shared}}), CONFIG, plan)
        assert written["zero_optimization"][name] != shared
    for stage in (0, 3):
        assert (
            name
            not in load_deepspeed(write(tmp_path, {"zero_optimization": {"stage": stage}}), CONFIG, plan)["zero_optimization"]
        )


def test_completes_what_follows_from_the_run(tmp_path: Path) -> None:
    path = write(tmp_path, {"zero_optimization": {"stage": 2}})
    result = load_deepspeed(path, CONFIG, IN_PARTS)
    assert result["zero_optimization"] == {"stage": 2, "use_multi_rank_bucket_allreduce": False}
    batch = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [result[key] for key in batch] == [64, 4, 4]
    assert result["gradient_clipping"] == 0.0  # DeepSpeed's own default is 1
    assert result["bf16"] == {"enabled": True} and result["data_types"] == {"grad_accum_dtype": "fp32"}
    assert result["timers"] == {"throughput": {"enabled": False}} and not result["wall_clock_breakdown"]
    assert result["steps_per_print"] > 10**6


def test_clipping_and_precision_follow_the_run(tmp_path: Path) -> None:
    cfg = replace(
        CONFIG,
        model=replace(CONFIG.model, precision="float32"),
        optimization=replace(CONFIG.optimization, clip_grad=0.5),
    )
    result = load_deepspeed(write(tmp_path, {}), cfg, IN_PARTS)
    assert result["gradient_clipping"] == 0.5 and "bf16" not in result and "data_types" not in result
    assert result["zero_optimization"] == {"stage": 0}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_are_summed_in_float32_where_possible(tmp_path: Path, stage: int, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, {"zero_optimization": {"stage": stage}})
    assert "data_types" not in load_deepspeed(path, CONFIG, WHOLE) and not caplog.records
    with caplog.at_level(logging.WARNING):
        assert ("data_types" in load_deepspeed(path, CONFIG, IN_PARTS)) == (stage > 0)
    assert len(caplog.records) == (stage == 0)


def test_diagnostics_can_be_asked_for(tmp_path: Path) -> None:
    asked = {"steps_per_print": 10, "wall_clock_breakdown": True, "comms_logger": {"enabled": True}}
    result = load_deepspeed(write(tmp_path, asked), CONFIG, WHOLE)
    assert asked.items() <= result.items()


def test_an_offloaded_optimizer_may_be_torchs(tmp_path: Path) -> None:
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    path = write(tmp_path, {"zero_optimization": zero})
    assert load_deepspeed(path, CONFIG, WHOLE)["zero_force_ds_cpu_optimizer"] is False


def test_every_run_has_its_own_folder_on_disk(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/disk"}}
    path = write(tmp_path, {"zero_optimization": zero})
    folders = set()
    for run in ("runs/a", "runs/b", "elsewhere/a"):
        cfg = replace(CONFIG, run=replace(CONFIG.run, dir=run))
        block = load_deepspeed(path, cfg, WHOLE)["zero_optimization"]["offload_optimizer"]
        folders.add(block["nvme_path"])
        assert Path(block["nvme_path"]).parent == Path("/disk")
    assert len(folders) == 3


@pytest.mark.parametrize(
    ("key", "block", "text"),
    [
        ("offload_optimizer", {"device": "nvme"}, "offload_optimizer.nvme_path: None: name a folder on a local disk"),
        ("offload_optimizer", {"device": "nvme", "nvme_path": "/d", "pipeline_read": True}, "the EMA would read files that"),
        ("offload_param", {"device": "nvme"}, "offload_param.device: 'nvme': the target's swapped-out weights"),
        ("offload_optimizer", {"device": "disk"}, "offload_optimizer.device: 'disk': must be cpu or nvme or none"),
    ],
)
def test_offload_that_cannot_be(tmp_path: Path, key: str, block: dict, text: str) -> None:
    assert text in refused(write(tmp_path, {"zero_optimization": {"stage": 3, key: block}}))[0]


def test_everything_wrong_at_once(tmp_path: Path) -> None:
    text = """{
  "zero_optimisation": {"stage": 3},
  "optimizer": {"type": "Adam"},
  "zero_optimization": {
    "stage": 2,
    "round_robin_gradients": true,
    "reduce_buket_size": 5,
    "zero_hpz_partition_size": 3,
    "offload_param": {"device": "cpu"},
    "offload_optimizer": {
      "device": "nvme",
      "nvme_path": "/tmp",
      "pin_memry": true
    }
  },
  "elasticity": {},
  "wandb": {"enabled": true},
  "wandb": {"enabled": false}
}
"""
    lines = refused(write(tmp_path, text))
    places = sorted(int(line.split(":")[1]) for line in lines)
    assert places == [2, 3, 6, 7, 8, 9, 10, 13, 16, 18], lines
    said = "\n".join(lines)
    for text in (
        "wandb: already given at ds.json:17; remove one of them",
        "zero_optimisation: unknown key of DeepSpeed 0.19.8; did you mean 'zero_optimization'?",
        "optimizer: belongs to the YAML of the run; remove it here and use optimization.lr",
        "elasticity: cannot be used here, remove it",
        "round_robin_gradients: cannot be used here, remove it: parameters and master weights no longer",
        "reduce_buket_size: unknown key of DeepSpeed 0.19.8; did you mean 'reduce_bucket_size'?",
        "zero_hpz_partition_size: 3 must be a whole number that divides 4 devices",
        "offload_param: needs stage 3, this is stage 2",
        "offload_optimizer: needs stage 3, this is stage 2",
        "offload_optimizer.pin_memry: unknown key of DeepSpeed 0.19.8; did you mean 'pin_memory'?",
    ):
        assert text in said


@pytest.mark.parametrize("key", sorted(keys.OWNED))
def test_what_the_yaml_owns_is_refused_with_its_key(tmp_path: Path, key: str) -> None:
    (line,) = refused(write(tmp_path, {key: 1}))
    assert line == f"ds.json:2: {key}: belongs to the YAML of the run; remove it here and use {keys.OWNED[key]}"


@pytest.mark.parametrize("key", sorted(keys.REFUSED))
def test_what_the_target_cannot_follow_is_refused_with_the_reason(tmp_path: Path, key: str) -> None:
    assert refused(write(tmp_path, {key: {}})) == [f"ds.json:2: {key}: cannot be used here, remove it: {keys.REFUSED[key]}"]


@pytest.mark.parametrize("key", sorted(keys.ZERO_REFUSED))
def test_refused_keys_of_zero(tmp_path: Path, key: str) -> None:
    (line,) = refused(write(tmp_path, {"zero_optimization": {"stage": 3, key: True}}))
    assert line.startswith(f"ds.json:4: zero_optimization.{key}: cannot be used here, remove it: ")


@pytest.mark.parametrize("stage", [4, -1, True, "3", 1.5, None])
def test_stage(tmp_path: Path, stage: object) -> None:
    (line,) = refused(write(tmp_path, {"zero_optimization": {"stage": stage}}))
    assert line == f"ds.json:3: zero_optimization.stage: must be 0, 1, 2 or 3, got {stage!r}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{\n  "zero_optimization": {"stage": 3,}\n}', "ds.json:2: not valid JSON"),
        ("{\n// stage\n}", "ds.json:2: not valid JSON"),
        ("[]", "ds.json: expected an object {...}"),
        ('{"steps_per_print": NaN}', "ds.json: NaN is not valid JSON; write a number"),
        ('{"zero_optimization": true}', "ds.json:1: zero_optimization: expected an object {...}, found true"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, line: str) -> None:
    assert refused(write(tmp_path, text))[0].startswith(line)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[" * 100_000, "nested too deep"), ('{"steps_per_print": ' + "9" * 5000 + "}", "a number of thousands of digits")],
)
def test_json_that_python_cannot_hold(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem):
        load_deepspeed(path, CONFIG, WHOLE)


def test_missing_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "ds.json") == ["ds.json: no such file"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_are_accepted(path: Path) -> None:
    plan = BatchPlan(micro_batch=8, accumulation=1, world_size=8)
    stage = load_deepspeed(path, CONFIG, plan)["zero_optimization"]["stage"]
    assert path.stem.startswith(f"zero{stage}")


def test_all_stages_are_shipped() -> None:
    names = {path.stem for path in SHIPPED}
    assert {"zero0", "zero1", "zero2", "zero3", "zero3_offload", "zero3_nvme", "zero3_lean", "zero3_hpz"} <= names


def test_lists_match_the_installed_deepspeed() -> None:
    """Every key that DeepSpeed reads is either let through, owned by the YAML or refused."""
    deepspeed_config = pytest.importorskip("deepspeed.runtime.config")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    asked: set[str] = set()

    class Recorder(dict):
        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

        def __contains__(self, key):
            asked.add(key)
            return super().__contains__(key)

        def __getitem__(self, key):
            asked.add(key)
            return super().__getitem__(key)

        def keys(self):
            return self

        def __copy__(self):
            return self

    deepspeed_config.DeepSpeedConfig(Recorder(train_batch_size=1, train_micro_batch_size_per_gpu=1))
    assert len(asked) > 50
    assert asked - (keys.ALLOWED | set(keys.OWNED) | set(keys.REFUSED)) == set()
    zero = {spec.alias or name for name, spec in DeepSpeedZeroConfig.model_fields.items()}
    assert zero - (keys.ZERO_ALLOWED | set(keys.ZERO_REFUSED)) == set()
    assert keys.ZERO_ALLOWED - zero == set()


def test_lists_of_diagnostics_match_the_installed_deepspeed() -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.profiling.config import DeepSpeedFlopsProfilerConfig
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    models = {"comet": CometConfig, "comms_logger": CommsLoggerConfig, "csv_monitor": CSVConfig}
    models |= {"tensorboard": TensorBoardConfig, "wandb": WandbConfig, "timers.throughput": DeepSpeedThroughputTimerConfig}
    read = {section: set(model.model_fields) for section, model in models.items()}
    read |= {"aio": set(AIO_DEFAULT_DICT), "flops_profiler": set(vars(DeepSpeedFlopsProfilerConfig({})))}
    assert read | {"timers": {"throughput"}} == {section: set(kinds) for section, kinds in keys.INNER.items()}


AUTO = '"auto" is filled in by Hugging Face\'s trainer, not here; give'
WHOLE_NUMBER = "expected a whole number, at least"


@pytest.mark.parametrize(
    ("zero", "line"),
    [
        ({"reduce_bucket_size": "auto"}, f"zero_optimization.reduce_bucket_size: {AUTO} a number or leave it out"),
        ({"stage": "auto"}, f"zero_optimization.stage: {AUTO}"),
        ({"offload_optimizer": {"device": "auto"}}, f"zero_optimization.offload_optimizer.device: {AUTO}"),
        ({"sub_group_size": "1e9"}, f'sub_group_size: {WHOLE_NUMBER} 1, found "1e9"'),
        ({"reduce_bucket_size": -1}, f"reduce_bucket_size: {WHOLE_NUMBER} 1, found -1"),
        ({"reduce_bucket_size": 0.5}, f"{WHOLE_NUMBER} 1, found 0.5"),
        ({"stage3_max_live_parameters": True}, f"{WHOLE_NUMBER} 0, found true"),
        ({"overlap_comm": "true"}, 'overlap_comm: expected true or false, found "true"'),
        ({"stage": 2.0}, "zero_optimization.stage: must be 0, 1, 2 or 3, got 2.0"),
    ],
)
def test_values_of_zero_of_a_wrong_type_or_range(zero: dict[str, Any], line: str, tmp_path: Path) -> None:
    (found,) = refused(write(tmp_path, {"zero_optimization": {"stage": 2} | zero}))
    assert found.startswith("ds.json:") and line in found


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ({"tensorboard": {"enabled": 1}}, "tensorboard.enabled: expected true or false, found 1"),
        ({"wall_clock_breakdown": {}}, "wall_clock_breakdown: expected true or false, found an object"),
        ({"steps_per_print": -5}, f"steps_per_print: {WHOLE_NUMBER} 1, found -5"),
        ({"aio": {"queue_depth": "auto"}}, f"aio.queue_depth: {AUTO} a number or leave it out"),
        ({"aio": {"block_size": "1M"}}, f'aio.block_size: {WHOLE_NUMBER} 1, found "1M"'),
        ({"aio": {"blocksize": 1}}, "aio.blocksize: unknown key of DeepSpeed 0.19.8; did you mean 'block_size'?"),
        ({"timers": {"throughput": {"enable": True}}}, "timers.throughput.enable: unknown key"),
        ({"zero_optimization": "auto"}, f"zero_optimization: {AUTO} an object {{...}} or leave it out"),
        ({"tensorboard": {"enabled": True, "output_path": None}}, "tensorboard.output_path: expected a text, found null"),
        ({"flops_profiler": {"enabled": True, "profile_step": "1"}}, f"profile_step: {WHOLE_NUMBER} 1"),
        ({"communication_data_type": "fp8"}, 'communication_data_type: expected one of fp16, bf16, fp32, found "fp8"'),
        ({"tensorboard": {"enabled": True, "output_path": "$IJEPA_DS_NOWHERE/x"}}, "$IJEPA_DS_NOWHERE is not set"),
    ],
)
def test_values_of_a_wrong_type_or_range(written: dict[str, Any], line: str, tmp_path: Path) -> None:
    (found,) = refused(write(tmp_path, written))
    assert found.startswith("ds.json:") and line in found


def test_whole_numbers_may_be_written_as_deepspeed_writes_them(tmp_path: Path) -> None:
    path = write(tmp_path, {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "allgather_bucket_size": 2}})
    assert load_deepspeed(path, CONFIG, WHOLE)["zero_optimization"]["reduce_bucket_size"] == 500_000_000
