"""The schedules reproduce recorded runs to the last bit and never pass their horizon."""

import json
import math
from dataclasses import replace

import pytest

from ijepa_ds.config import Config, ConfigError, DataConfig, ModelConfig, OptimizationConfig, RunConfig
from ijepa_ds.config.schedules import Schedule, steps_per_epoch

# Step -> (lr, weight decay, momentum) of a recorded run: 10 steps an epoch, 5 epochs, 1 of warm-up, scale 1.
SMALL = {
    0: (0.00028000000000000003, 0.04035518888291112, 0.996),
    8: (0.00092, 0.06802097340963725, 0.99664),
    9: (0.001, 0.07437694101250947, 0.99672),
    10: (0.0009984602081996976, 0.08130761630035793, 0.9968),
    16: (0.0009263937620948692, 0.13328433866169126, 0.9972799999999999),
    20: (0.0008248993001409267, 0.17523582031032608, 0.9976),
    49: (1e-06, 0.4, 0.99992),
}
# 7 steps an epoch, 6 epochs, 2 of warm-up, ipe_scale 1.25: schedules of 52 steps in a run of 42.
STRETCHED = {
    0: (0.00025714285714285715, 0.04032840023980283, 0.996),
    13: (0.001, 0.10063792151665685, 0.997),
    14: (0.0009982939542568317, 0.10899060292686219, 0.9970769230769231),
    51: (1e-06, 0.4, 0.9999230769230769),
}


def config(**optimization: object) -> Config:
    values = {"batch_size": 4, "epochs": 5.0, "warmup_epochs": 1.0, **optimization}
    return Config(
        run=RunConfig(dir="runs/x"),
        data=DataConfig(source="images"),
        model=ModelConfig(name="tiny"),
        optimization=OptimizationConfig(**values),
    )


def of(schedule: Schedule, step: int) -> tuple[float, float, float]:
    return schedule.lr(step), schedule.weight_decay(step), schedule.momentum(step)


def test_ipe_scale_stretches_schedules_of_a_run_in_steps() -> None:
    in_steps = config(epochs=None, steps=40, warmup_epochs=None, warmup_steps=4, ipe_scale=1.25)
    schedule = Schedule.of(in_steps, 10)
    assert (schedule.total_steps, schedule.horizon) == (40, 50)
    assert schedule.lr(39) > 10 * in_steps.optimization.final_lr and schedule.lr(49) == in_steps.optimization.final_lr


def test_small_run_exactly() -> None:
    schedule = Schedule.of(config(), 10)
    assert (schedule.total_steps, schedule.warmup_steps, schedule.horizon) == (50, 10, 50)
    assert {step: of(schedule, step) for step in SMALL} == SMALL


def test_stretched_run_exactly() -> None:
    schedule = Schedule.of(config(epochs=6.0, warmup_epochs=2.0, ipe_scale=1.25), 7)
    assert (schedule.total_steps, schedule.warmup_steps, schedule.horizon) == (42, 14, 52)
    assert {step: of(schedule, step) for step in STRETCHED} == STRETCHED


@pytest.mark.parametrize("name", ["small", "two-contexts"])
def test_whole_recorded_schedule_exactly(shared, name: str) -> None:
    figures = json.loads((shared / "oracle" / name / "figures.json").read_text())
    run = figures["config"]
    keys = ("ipe_scale", "lr", "start_lr", "final_lr", "weight_decay", "final_weight_decay")
    cfg = config(
        epochs=run["epochs"],
        warmup_epochs=run["warmup_epochs"],
        ema=tuple(run["ema"]),
        **{key: run[key] for key in keys},
    )
    schedule = Schedule.of(cfg, run["iterations_per_epoch"])
    assert schedule.horizon == len(figures["schedule"])
    assert [list(of(schedule, step)) for step in range(schedule.horizon)] == figures["schedule"]


def test_never_past_the_horizon() -> None:
    schedule = Schedule.of(config(ipe_scale=0.5), 10)
    assert (schedule.total_steps, schedule.horizon) == (50, 25)
    last = of(schedule, 24)
    assert last[0] == pytest.approx(1e-6) and last[1] == pytest.approx(0.4)
    assert {of(schedule, step) for step in (25, 30, 49, 10**6)} == {last}


def test_shape_of_the_curves() -> None:
    schedule = Schedule.of(config(), 40)
    rates = [schedule.lr(step) for step in range(schedule.total_steps)]
    assert max(rates) == rates[schedule.warmup_steps - 1] == 1e-3
    assert rates[: schedule.warmup_steps] == sorted(rates[: schedule.warmup_steps])
    assert rates[schedule.warmup_steps :] == sorted(rates[schedule.warmup_steps :], reverse=True)
    decays = [schedule.weight_decay(step) for step in range(schedule.total_steps)]
    assert decays == sorted(decays) and 0.04 < decays[0] and decays[-1] <= 0.4
    momenta = [schedule.momentum(step) for step in range(schedule.total_steps)]
    assert momenta == sorted(momenta) and momenta[0] == 0.996 and momenta[-1] < 1.0


def test_falling_and_constant_weight_decay() -> None:
    falling = Schedule.of(config(weight_decay=0.4, final_weight_decay=0.04), 10)
    assert all(0.04 <= falling.weight_decay(step) <= 0.4 for step in range(60))
    constant = Schedule.of(config(weight_decay=0.1, final_weight_decay=0.1, ema=(0.99, 0.99)), 10)
    assert {constant.weight_decay(step) for step in range(50)} == {0.1}
    assert {constant.momentum(step) for step in range(50)} == {0.99}


def test_steps_instead_of_epochs() -> None:
    in_steps = config(epochs=None, steps=50, warmup_epochs=None, warmup_steps=10)
    assert Schedule.of(in_steps, 3) == Schedule.of(config(), 10)


@pytest.mark.parametrize("warmup", [0, 50])
def test_all_or_no_warmup(warmup: int) -> None:
    schedule = Schedule.of(config(warmup_epochs=None, warmup_steps=warmup), 10)
    assert all(math.isfinite(schedule.lr(step)) and schedule.lr(step) > 0 for step in range(50))


def wsd(steps: int, cooldown: int = 0, **more: object) -> Schedule:
    values = {"final_weight_decay": 0.04, "ema": (0.99, 0.99), "warmup_epochs": None, "warmup_steps": 10, **more}
    return Schedule.of(config(epochs=None, steps=steps, schedule="wsd", cooldown_steps=cooldown, **values), 10)


def test_warmup_constant_cooldown() -> None:
    schedule = wsd(100, 20)
    rates = [schedule.lr(step) for step in range(100)]
    assert rates[:10] == [Schedule.of(config(), 10).lr(step) for step in range(10)]  # the warm-up of the cosine
    assert set(rates[9:80]) == {1e-3}
    falls = [before - after for before, after in zip(rates[79:], rates[80:], strict=False)]
    assert falls == pytest.approx([(1e-3 - 1e-6) / 20] * 20) and rates[-1] == pytest.approx(1e-6)
    assert {schedule.weight_decay(step) for step in range(100)} == {0.04}
    assert {schedule.momentum(step) for step in range(100)} == {0.99}


def test_no_step_before_the_cooldown_knows_the_length() -> None:
    short, longer, branch = wsd(60), wsd(200, 50), wsd(80, 30)
    for step in range(50):
        assert of(short, step) == of(longer, step) == of(branch, step)
    assert short.same_until(longer) == 60 and longer.same_until(branch) == branch.same_until(short) == 50
    assert of(branch, 50) != of(short, 50) and of(branch, 49) == of(short, 49)
    with pytest.raises(ConfigError, match=r"optimization\.cooldown_steps: 15 and a warm-up of 10 are longer than the run"):
        wsd(20, 15)


def test_refusals_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"optimization\.warmup_steps: 60 steps of warm-up in .* 50 steps"):
        Schedule.of(config(warmup_epochs=None, warmup_steps=60), 10)
    with pytest.raises(ConfigError, match=r"optimization\.epochs: .* make no step"):
        Schedule.of(config(epochs=0.01, warmup_epochs=0.0), 10)
    with pytest.raises(ConfigError, match=r"data\.source: holds 3 images.*batch_size to at most 3"):
        steps_per_epoch(3, 4)
    with pytest.raises(ValueError, match="count from 0"):
        Schedule.of(config(), 10).lr(-1)


def test_steps_per_epoch_drops_the_last_part() -> None:
    assert steps_per_epoch(1_281_167, 2048) == 625


def test_is_a_value() -> None:
    schedule = Schedule.of(config(), 10)
    assert replace(schedule) == schedule and hash(schedule) == hash(replace(schedule))
