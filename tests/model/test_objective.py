"""Options of the objective: values against a plain rewriting, FLOPs, refusals, and weights of such runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ijepa_ds import config
from ijepa_ds.config import Config, ConfigError, ObjectiveConfig, TargetsConfig
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.decoder.condition import Conditioner
from ijepa_ds.masks.sampler import Masks, build_sampler
from ijepa_ds.model import ijepa
from ijepa_ds.model.objective import nearness
from ijepa_ds.model.vit import initial_value, initialise
from ijepa_ds.model.work import Tokens, work_of
from ijepa_ds.plan.activations import activations_of
from ijepa_ds.weights import WeightsError, build_ijepa, open_source
from ijepa_ds.weights.export import export
from ijepa_ds.weights.start import open_start
from tests import objective_reference
from tests.dist import measured
from tests.plan.test_plan import counted
from tests.weights_cases import small_config, write_run

HIDDEN = TargetsConfig(layers=(1, 2))
OWN = ObjectiveConfig(context_weight=0.5)
SPREAD = ObjectiveConfig(variance_weight=2.0, covariance_weight=30.0, projection=12)
CASES = [(HIDDEN, None), (None, OWN), (TargetsConfig(layers=(1,)), OWN), (None, SPREAD)]


def with_options(cfg: Config, targets: TargetsConfig | None = None, objective: ObjectiveConfig | None = None) -> Config:
    return replace(cfg, targets=targets or TargetsConfig(), objective=objective or ObjectiveConfig())


@pytest.mark.parametrize("norm", ["layer", "tanh", "none"])
@pytest.mark.parametrize("layers", [None, (2,), (1, 3)])
def test_loss_equals_a_plain_rewriting(norm: str, layers: tuple[int, ...] | None, tmp_path: Path) -> None:
    cfg = small_config(tmp_path / "run")
    cfg = replace(cfg, model=replace(cfg.model, depth=3), masks=replace(cfg.masks, num_contexts=2, allow_overlap=True))
    images = torch.randn(2, 3, 48, 48)
    masks = build_sampler(cfg.masks, cfg.grid, 0, 2).sample(0, 0, 2, "cpu")
    for combine in ("concat", "mean") if len(layers or ()) > 1 else ("concat",):
        cfg = with_options(cfg, TargetsConfig(layers=layers, norm=norm, combine=combine), OWN)  # type: ignore[arg-type]
        model = ijepa.build(cfg)
        initialise(model, seed=1)
        for parameter in model.parameters():
            parameter.data.mul_(3)  # so that tanh bends, and smooth L1 reaches its linear part
        ours, plain = model(images, masks), objective_reference.loss_of(cfg, model, images, masks, 0)
        torch.testing.assert_close(ours.loss, plain)
        assert ours.prediction.shape == (2, 2, *ours.target.shape[1:])
        assert ours.target.shape[-1] == cfg.targets.width(48)
        half = model(images, masks, None, 0.5).loss
        without = ijepa.IJEPA(model.encoder, model.predictor, model.target_encoder, targets=cfg.targets)(images, masks).loss
        torch.testing.assert_close(half, (ours.loss + without) / 2)


def test_weights_of_context_patches_fall_with_the_distance() -> None:
    """On a grid of 5 x 5, a block of the rows 0 and 1 and the columns 1 and 2; patch 24 is 3 rows and 2 columns away."""
    masks = Masks(torch.tensor([[[0, 1, 3, 13, 24]]]), torch.tensor([[[1, 2, 6, 7]]]))
    expected = torch.tensor([1.0, 1.0, 1.0, 2**0.25, 13**0.25]).reciprocal()
    expected[3] = 2**-0.25  # one row and one column away
    torch.testing.assert_close(nearness(masks, 5)[0, 0, 0], expected)


@pytest.mark.parametrize("recompute", ["", "full"])
@pytest.mark.parametrize(("targets", "objective"), CASES)
def test_flops_and_parameters_are_torchs(
    recompute: str, targets: TargetsConfig | None, objective: ObjectiveConfig | None, tmp_path: Path
) -> None:
    from ijepa_ds.model.flops import flops_of

    cfg = small_config(tmp_path / "run")
    model = replace(cfg.model, depth=3, activation_checkpointing=bool(recompute))
    cfg = with_options(replace(cfg, model=model), targets, objective)
    work = work_of(cfg, Tokens(9, 6, 9, 6))
    assert flops_of(work, fused_attention=False).executed == pytest.approx(counted(cfg, 9, 6), rel=0.02)
    with torch.device("meta"):
        made = ijepa.build(cfg)
    assert work.count("predictor") == sum(p.numel() for p in made.predictor.parameters())


@pytest.mark.parametrize(("targets", "objective"), [(TargetsConfig(layers=(1, 2, 3, 4)), None), (None, OWN)])
def test_activations_are_what_the_allocator_held(targets: TargetsConfig | None, objective: ObjectiveConfig | None) -> None:
    cfg = measured.config_of("small", micro_batch=2, ranks=1, depth=4, activation_checkpointing=True)
    cfg = with_options(cfg, targets, objective)
    held, kc, kt = measured.activation_bytes(ijepa.build(cfg), cfg, 2)
    assert activations_of(work_of(cfg, Tokens(kc, kt, kc, kt)), 2) == pytest.approx(held, rel=0.15)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["targets.layers=[1, 3]"], "targets.layers: the encoder has blocks 1 to 2"),
        (["targets.layers=[2, 1]"], "must be at least 1 and ascending"),
        (["targets.layers=[]"], "expected a list"),
        (["targets.layers=[1]", "targets.combine=mean"], "no effect without two or more targets.layers"),
        (["objective.context_warmup=0.5"], "no effect while objective.context_weight is 0"),
        (["objective.context_weight=1", "objective.context_warmup=1.1"], "must be from 0 to 1"),
        (["objective.projection=9"], "no effect while objective.variance_weight and objective.covariance_weight are 0"),
        (["objective.variance_weight=1", "optimization.batch_size=1"], "statistics of a batch need 2 images or more"),
    ],
)
def test_impossible_options_are_refused_with_key_and_limit(overrides: list[str], words: str, tmp_path: Path) -> None:
    small_config(tmp_path / "run")
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        config.load(tmp_path / "written.yaml", overrides)


def test_options_at_their_defaults_leave_the_fingerprint_and_others_change_it(tmp_path: Path) -> None:
    cfg = small_config(tmp_path / "run")
    others = [
        with_options(cfg, HIDDEN),
        with_options(cfg, replace(HIDDEN, combine="mean")),
        with_options(cfg, TargetsConfig(norm="tanh")),
        with_options(cfg, None, OWN),
        with_options(cfg, None, replace(OWN, context_warmup=0.1)),
        with_options(cfg, None, SPREAD),
    ]
    assert len({config.fingerprint(one) for one in (cfg, *others)}) == 7
    assert all(config.from_text(config.to_text(one), "x") == one for one in others)
    assert [line for line in config.difference(cfg, others[0])] == ["targets.layers: null -> [1, 2]"]


def test_variance_and_covariance_equal_a_plain_rewriting(tmp_path: Path) -> None:
    cfg = with_options(small_config(tmp_path / "run"), None, SPREAD)
    cfg = replace(cfg, masks=replace(cfg.masks, num_contexts=3))
    images = torch.randn(4, 3, 48, 48)
    masks = build_sampler(cfg.masks, cfg.grid, 0, 4).sample(0, 0, 4, "cpu")
    model = ijepa.build(cfg)
    initialise(model, seed=1)
    for parameter in model.parameters():
        parameter.data.mul_(4)
    ours, plain = model(images, masks).loss, objective_reference.loss_of(cfg, model, images, masks, 0)
    torch.testing.assert_close(ours, plain)
    wanted = torch.autograd.grad(plain, [p for p in model.parameters() if p.requires_grad])
    for found, true in zip(torch.autograd.grad(ours, [p for p in model.parameters() if p.requires_grad]), wanted, strict=True):
        torch.testing.assert_close(found, true, rtol=1e-3, atol=1e-5)
    none = objective_reference.loss_of(with_options(cfg), model, images, masks, 0)
    assert float(plain.detach()) > float(none.detach()) + 0.1


def test_statistics_over_the_batch_need_it_in_one_pass(tmp_path: Path) -> None:
    cfg = with_options(small_config(tmp_path / "run"), None, SPREAD)
    cfg = replace(cfg, optimization=replace(cfg.optimization, max_micro_batch=2))
    words = "objective.variance_weight: its statistics are over the global batch.*raise optimization.max_micro_batch to 4"
    with pytest.raises(ConfigError, match=words):
        config.check(cfg, 2)
    config.check(cfg, 4)
    config.check(replace(cfg, objective=OWN), 2)
    groups = replace(cfg, masks=replace(cfg.masks, sampler="published", context_tokens=None, truncation_group=2))
    words = "raise optimization.max_micro_batch to 4 and set masks.truncation_group to a multiple of 4"
    with pytest.raises(ConfigError, match=words):
        config.check(groups, 2)
    groups = replace(groups, optimization=replace(cfg.optimization, max_micro_batch=4))
    with pytest.raises(ConfigError, match="passes of 2; set masks.truncation_group to a multiple of 4"):
        config.check(groups, 2)
    config.check(replace(groups, masks=replace(groups.masks, truncation_group=4)), 2)


def test_a_projector_is_not_exported_and_starts_anew(tmp_path: Path) -> None:
    cfg = with_options(small_config(tmp_path / "run"), None, SPREAD)
    write_run(tmp_path / "run", cfg)
    source = open_source(tmp_path / "run")
    assert not [name for name in source.parts["predictor"] if "projector" in name]
    out = export(source, tmp_path / "all", which="all").parent
    start = open_start(replace(cfg, model=replace(cfg.model, init_from=str(out))))
    name = "predictor.projector.0.weight"
    assert torch.equal(start.student(name, torch.Size((12, 48))), initial_value(name, torch.Size((12, 48)), cfg.run.seed))


def test_a_warm_up_of_the_context_loss_fixes_the_length_of_the_run(tmp_path: Path) -> None:
    """It is a share of the run: with another length, steps already made would have been others."""
    cfg = small_config(tmp_path / "run")
    constant = {"schedule": "wsd", "final_weight_decay": 0.04, "ema": (0.9, 0.9)}
    cfg = replace(cfg, optimization=replace(cfg.optimization, **constant))
    longer = replace(cfg, optimization=replace(cfg.optimization, steps=30))
    assert config.fingerprint(cfg) == config.fingerprint(longer)
    rising = replace(OWN, context_warmup=0.5)
    assert config.fingerprint(with_options(cfg, None, rising)) != config.fingerprint(with_options(longer, None, rising))
    schedule = Schedule.of(with_options(cfg, None, rising), 10)
    assert [schedule.context_share(step) for step in (0, 4, 9, 10, 19)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert Schedule.of(cfg, 10).context_share(0) == 1.0


def test_weights_of_a_run_with_hidden_targets(tmp_path: Path) -> None:
    """They are exported and opened with the run's targets; formats and decoders that need others refuse them."""
    cfg = with_options(small_config(tmp_path / "run"), HIDDEN)
    model = write_run(tmp_path / "run", cfg)
    images = torch.randn(2, 3, 48, 48)
    masks = build_sampler(cfg.masks, cfg.grid, 0, 2).sample(0, 0, 2, "cpu")
    source = open_source(tmp_path / "run")
    out = export(source, tmp_path / "all", which="all").parent
    for path in (tmp_path / "run", out):
        again = build_ijepa(open_source(path))
        torch.testing.assert_close(again(images, masks).target, model(images, masks).target)
        torch.testing.assert_close(again(images, masks).prediction, model(images, masks).prediction)
    assert "output 96" in (out / "README.md").read_text()
    for format_ in ("timm", "hf"):
        export(source, tmp_path / format_, format_)
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["num_features"] == 48
    with pytest.raises(WeightsError, match=r"predictor's output has 96 values \(targets\.layers\), published ones 48"):
        export(source, tmp_path / "published", "published")
    with pytest.raises(WeightsError, match="block needs a predictor of the encoder's output.*targets.layers"):
        Conditioner(source, "block", torch.device("cpu"))
    assert Conditioner(source, "image", torch.device("cpu")).width == 52
    plain = with_options(cfg)
    start = replace(plain, model=replace(plain.model, init_from=str(tmp_path / "run")))
    with pytest.raises(WeightsError, match="targets.layers and targets.combine make predictions of 48 values here, 96 there"):
        open_start(start)
