"""The published method's own run, reproduced: outputs, loss, every gradient, the schedules, the weights after training.

The oracle's batch axis is mask-major (see `ordered`); ours keeps images first.
"""

from dataclasses import replace

import pytest
from torch import Tensor

from ijepa_ds.config import Config, DataConfig, MasksConfig, ModelConfig, OptimizationConfig, PredictorConfig, RunConfig
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model.ijepa import IJEPA, build
from tests.oracle import assert_close
from tests.reference import EMA, make_optimizer


def config_of(c: dict) -> Config:
    """Our configuration of an oracle run."""
    return Config(
        run=RunConfig(dir="unused-run"),
        data=DataConfig(source="unused", crop_size=c["image_size"]),
        model=ModelConfig(
            name="tiny",
            patch_size=c["patch_size"],
            width=c["embed_dim"],
            depth=c["depth"],
            heads=c["num_heads"],
            mlp_hidden=int(c["embed_dim"] * c["mlp_ratio"]),
            predictor=PredictorConfig(depth=c["predictor_depth"], width=c["predictor_embed_dim"]),
            precision="float32",
        ),
        masks=MasksConfig(num_contexts=c["num_context_masks"], num_targets=c["num_target_masks"]),
        optimization=OptimizationConfig(
            batch_size=c["batch"],
            epochs=c["epochs"],
            warmup_epochs=c["warmup_epochs"],
            lr=c["lr"],
            start_lr=c["start_lr"],
            final_lr=c["final_lr"],
            weight_decay=c["weight_decay"],
            final_weight_decay=c["final_weight_decay"],
            ema=tuple(c["ema"]),
            ipe_scale=c["ipe_scale"],
        ),
    )


def model_of(cfg: Config, tensors: dict[str, Tensor], part: str) -> IJEPA:
    """The networks with the oracle's weights."""
    model = build(cfg)
    state = {key[len(part) + 1 :].replace("/", "."): value for key, value in tensors.items() if key.startswith(part + "/")}
    model.load_state_dict(state)  # strict: the parameter names are the published ones
    return model


def masks_of(tensors: dict[str, Tensor], step: int) -> Masks:
    """[contexts, B, Kc] and [M, B, Kt] of the oracle -> images first."""
    context, targets = tensors[f"step{step}/context_masks"], tensors[f"step{step}/target_masks"]
    return Masks(context.transpose(0, 1).contiguous(), targets.transpose(0, 1).contiguous())


def ordered(x: Tensor) -> Tensor:
    """Ours [B, C, M, Kt, D] -> the published batch order: index = (m * contexts + c) * B + b."""
    return x.permute(2, 1, 0, 3, 4).flatten(0, 2)


def test_outputs_loss_and_gradients(oracle: tuple[dict, dict[str, Tensor]]) -> None:
    figures, tensors = oracle
    model = model_of(config_of(figures["config"]), tensors, "init")
    masks, images = masks_of(tensors, 0), tensors["step0/images"]
    c = masks.context.shape[1]
    encoded = model.encoder(images, masks.context).transpose(0, 1).flatten(0, 1)
    assert_close(encoded, tensors["step0/encoder_output"], 1e-5, "encoder")
    assert_close(model.target_encoder(images), tensors["step0/target_encoder_output"], 1e-5, "target encoder")
    output = model(images, masks)
    assert_close(ordered(output.prediction), tensors["step0/predictions"], 1e-5, "predictions")
    repeated = output.target[:, None].expand(-1, c, -1, -1, -1)
    assert_close(ordered(repeated), tensors["step0/targets"], 1e-5, "targets")
    assert float(output.loss.detach()) == pytest.approx(figures["steps"][0]["loss"], rel=1e-5)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            part, _, rest = name.partition(".")
            assert_close(parameter.grad, tensors[f"step0/grad/{part}/{rest}"], 1e-5, f"gradient of {name}")
    assert not any(p.requires_grad for p in model.target_encoder.parameters())


def test_schedules_are_exact(oracle: tuple[dict, dict[str, Tensor]]) -> None:
    figures, _ = oracle
    schedule = Schedule.of(config_of(figures["config"]), figures["config"]["iterations_per_epoch"])
    assert figures["schedule_columns"] == ["lr", "weight_decay", "ema_momentum"]
    for step, row in enumerate(figures["schedule"]):
        ours = [schedule.lr(step), schedule.weight_decay(step), schedule.momentum(step)]
        assert ours == pytest.approx(row, rel=1e-12), f"step {step}"


def test_weights_after_training(oracle: tuple[dict, dict[str, Tensor]]) -> None:
    figures, tensors = oracle
    cfg = config_of(figures["config"])
    schedule = Schedule.of(cfg, figures["config"]["iterations_per_epoch"])
    model = model_of(cfg, tensors, "init")
    optimizer, ema = make_optimizer(model, cfg), EMA(model)
    for step, row in enumerate(figures["steps"]):
        output = model(tensors[f"step{step}/images"], masks_of(tensors, step))
        assert float(output.loss.detach()) == pytest.approx(row["loss"], rel=1e-5), f"step {step}"
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.apply(schedule.lr(step), schedule.weight_decay(step))
        ema.update(schedule.momentum(step))
    for name, parameter in model.named_parameters():
        assert_close(parameter.detach(), tensors["final/" + name.replace(".", "/", 1)], 1e-4, name)


def test_a_wrong_order_would_be_seen(oracle: tuple[dict, dict[str, Tensor]]) -> None:
    """The comparison can fail: with the targets of another image the loss is not the oracle's."""
    figures, tensors = oracle
    model = model_of(config_of(figures["config"]), tensors, "init")
    masks = masks_of(tensors, 0)
    wrong = replace(masks, targets=masks.targets.roll(1, dims=0))
    assert float(model(tensors["step0/images"], wrong).loss.detach()) != pytest.approx(figures["steps"][0]["loss"], rel=1e-5)
