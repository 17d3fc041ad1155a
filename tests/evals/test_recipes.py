"""Fine-tuning equals an obvious rewriting in plain torch: groups, decay, drop path, mixing, smoothing, schedule, order."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import rand_augment_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from ijepa_ds.config.sizes import Size
from ijepa_ds.evals import finetune
from ijepa_ds.model.blocks import DropPath as PretrainingDropPath
from ijepa_ds.model.vit import Encoder, initialise

SIZE, WIDTH, CLASSES = 16, 16, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
# 4 batches of 6 an epoch: a quarter of the 26 images, rounded down to an even number
SHORT = finetune.Recipe(lr=2e-3, weight_decay=0.3, layer_decay=0.6, epochs=5, drop_path=0.4, crop_scale=0.3, seed=3)
PLAIN = replace(SHORT, mixup=0.0, cutmix=0.0, drop_path=0.0, rand_augment="")


class Images(NamedTuple):
    """Labelled images on disk."""

    train: list[str]
    train_labels: Tensor
    test: list[str]
    test_labels: Tensor


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """26 training and 100 test images: noise whose colour depends on the class, so that some are classified wrongly."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    labels, paths = rng.integers(0, CLASSES, 126), []
    for number, label in enumerate(labels):
        colour = 128 + 40 * np.eye(3)[label] + rng.normal(0, 30, 3)
        noisy = (colour + rng.normal(0, 40, (SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(noisy).save(paths[-1])
    return Images(paths[:26], torch.from_numpy(labels[:26]), paths[26:], torch.from_numpy(labels[26:]))


def small_encoder() -> Encoder:
    """Three blocks. Large weights, so that every part has an effect."""
    encoder = Encoder(Size(WIDTH, 3, 2, 32), 4, SIZE // 4)
    initialise(encoder, seed=0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    return encoder


# --- the rewriting


def layer_of(name: str) -> int:
    """Layers from the input: 0 patch embedding, 1 to 3 the blocks, the last one with the final norm, 4 the head."""
    if name.startswith("patch_embed"):
        return 0
    return 1 + int(name.split(".")[1]) if name.startswith("blocks") else 3


def augmented(path: str, keys: tuple[int, int, int], recipe: finetune.Recipe) -> Tensor:
    """One training image [3, S, S]: crop, flip, RandAugment; every random number depends on (seed, epoch, position)."""
    seeds = np.random.SeedSequence(keys).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    torch.manual_seed(int(seeds[2]))
    image = Image.open(path).convert("RGB")
    image = RandomResizedCropAndInterpolation(SIZE, (recipe.crop_scale, 1.0), (3 / 4, 4 / 3), "bicubic")(image)
    image = transforms.RandomHorizontalFlip(0.5)(image)
    if recipe.rand_augment:
        grey = tuple(round(255 * value) for value in MEAN)
        options = {"translate_const": int(SIZE * 0.45), "img_mean": grey, "interpolation": Image.Resampling.BICUBIC}
        image = rand_augment_transform(recipe.rand_augment, options)(image)
    return (transforms.functional.to_tensor(image) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def mixed(pixels: Tensor, targets: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mixup (arXiv 1710.09412) or cutmix (1905.04899) of a batch with itself in reverse order."""
    np.random.rand()  # timm mixes with a probability, here 1
    use_cutmix = np.random.rand() < 0.5 if mixup and cutmix else bool(cutmix)
    share = np.random.beta(cutmix, cutmix) if use_cutmix else np.random.beta(mixup, mixup)
    if use_cutmix:
        side = int(SIZE * math.sqrt(1 - share))
        y, x = np.random.randint(0, SIZE), np.random.randint(0, SIZE)
        rows = slice(max(0, y - side // 2), min(SIZE, y + (side + 1) // 2))
        columns = slice(max(0, x - side // 2), min(SIZE, x + (side + 1) // 2))
        whole = pixels.clone()
        pixels[:, :, rows, columns] = whole.flip(0)[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / SIZE**2
    else:
        pixels = share * pixels + (1 - share) * pixels.flip(0)
    return pixels, share * targets + (1 - share) * targets.flip(0)


def logits_of(encoder: Encoder, head: nn.Linear, pixels: Tensor, drop_path: float) -> Tensor:
    """The network; block i of n drops each of its branches with probability drop_path * i / (n - 1)."""

    def branch(x: Tensor, rate: float) -> Tensor:
        return x * torch.empty(len(x), 1, 1).bernoulli_(1 - rate) / (1 - rate) if rate else x

    x = encoder.patch_embed(pixels) + encoder.pos_embed
    for number, block in enumerate(encoder.blocks):
        rate = drop_path * number / 2
        x = x + branch(block.attn(block.norm1(x)), rate)
        x = x + branch(block.mlp(block.norm2(x)), rate)
    return head(encoder.norm(x).mean(dim=1))


def rewritten(encoder: Encoder, images: Images, recipe: finetune.Recipe) -> tuple[dict[str, Tensor], float, float]:
    """Parameters of the fine-tuned network, the mean loss of the last epoch, and percent of the test images."""
    torch.manual_seed(recipe.seed)
    np.random.seed(recipe.seed)
    encoder, head = copy.deepcopy(encoder), nn.Linear(WIDTH, CLASSES)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    iter(DataLoader([0]))  # type: ignore[arg-type]  # draws a seed for its workers

    named = [(f"encoder.{name}", parameter, layer_of(name)) for name, parameter in encoder.named_parameters()]
    named += [(f"head.{name}", parameter, 4) for name, parameter in head.named_parameters()]
    groups = []
    for _, parameter, layer in named:
        first = recipe.lr * recipe.layer_decay ** (4 - layer)
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.append({"params": [parameter], "weight_decay": decay, "first": first})
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8)

    step, batch, losses, steps = 0, 6, [], 4 * recipe.epochs
    warm = {20: 2, 8: 1, 4: 1}[steps]  # a tenth
    for epoch in range(recipe.epochs):
        order = np.random.default_rng((recipe.seed, epoch)).permutation(26)[:24]
        for positions in order.reshape(4, batch):
            with torch.random.fork_rng(devices=[]):
                state = np.random.get_state()
                drawn = [augmented(images.train[i], (recipe.seed, epoch, int(i)), recipe) for i in positions]
                np.random.set_state(state)
            pixels = torch.stack(drawn)
            targets = nn.functional.one_hot(images.train_labels[positions], CLASSES).float()
            targets = (1 - recipe.smoothing) * targets + recipe.smoothing / CLASSES
            if recipe.mixup or recipe.cutmix:
                pixels, targets = mixed(pixels, targets, recipe.mixup, recipe.cutmix)
            loss = -(targets * logits_of(encoder, head, pixels, recipe.drop_path).log_softmax(dim=1)).sum(dim=1).mean()
            factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * factor
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
    with torch.no_grad():
        pixels = torch.stack([transforms.functional.to_tensor(Image.open(path)) for path in images.test])
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        right = logits_of(encoder, head, pixels, 0.0).argmax(dim=1) == images.test_labels
    parameters = {name: parameter.detach() for name, parameter, _ in named}
    return parameters, sum(losses[-4:]) / 4, 100 * right.double().mean().item()


# --- the comparisons


@pytest.mark.parametrize(
    "recipe",
    [
        replace(PLAIN, epochs=2),
        replace(SHORT, cutmix=0.0, rand_augment="", epochs=2, seed=4),
        replace(SHORT, mixup=0.0, smoothing=0.2, rand_augment="", epochs=2),
        SHORT,
    ],
    ids=["no mixing", "mixup", "cutmix", "everything"],
)
def test_fine_tuning_is_the_rewriting(recipe: finetune.Recipe, images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[finetune.Classifier] = []
    score = finetune._score
    monkeypatch.setattr(finetune, "_score", lambda model, *rest: scored.append(model) or score(model, *rest))
    encoder = small_encoder()
    options = {"size": SIZE, "width": WIDTH, "mean": MEAN, "std": STD, "recipe": recipe, "workers": 1}
    found = finetune.evaluate(encoder, *images, **options)
    parameters, loss, right = rewritten(encoder, images, recipe)
    ours = dict(scored[0].named_parameters())
    assert ours.keys() == parameters.keys()
    keys = slice(WIDTH, 2 * WIDTH)  # their bias has no gradient but rounding, which Adam enlarges
    differences = {}
    for name, wanted in parameters.items():
        difference = (ours[name].detach() - wanted).abs()
        if name.endswith("qkv.bias"):
            difference[keys] = 0.0
        differences[name] = float(difference.max())
    name = max(differences, key=lambda name: differences[name])
    # rounding: up to 2e-5; a schedule, decay, smoothing, drop path or mixing that differs: 1e-3 to 1e-2
    assert differences[name] < 2e-4, f"{name}: {differences[name]}"
    assert found["train_loss"] == pytest.approx(loss, abs=1e-5)  # rounding: 1e-7; other betas of AdamW: above 1e-5
    assert found["top1"] == right  # of 100 test images, about half are right


def test_registers_are_tuned_like_the_patch_embedding() -> None:
    encoder = Encoder(replace(Size(WIDTH, 3, 2, 32), registers=2), 4, SIZE // 4)
    model = finetune.Classifier(encoder, WIDTH, CLASSES)
    groups = finetune.parameter_groups(model, replace(PLAIN, weight_decay=0.05, layer_decay=0.5))
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    registers, patches = of[id(encoder.reg_token)], of[id(encoder.patch_embed.proj.weight)]
    assert registers["lr_scale"] == patches["lr_scale"] == 0.5**4
    assert registers["weight_decay"] == 0.0 and patches["weight_decay"] == 0.05
    assert of[id(model.head.weight)]["lr_scale"] == 1.0


def test_fine_tuning_in_bfloat16_is_near(images: Images) -> None:
    """Matrix products are rounded to 8 bits; losses and weights stay float32."""
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        options = {"size": SIZE, "width": WIDTH, "mean": MEAN, "std": STD, "recipe": replace(PLAIN, epochs=1), "workers": 1}
        losses.append(finetune.evaluate(small_encoder(), *images, **options, dtype=dtype)["train_loss"])
    # equal losses would mean that autocast is off
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=0.02)


@pytest.mark.parametrize("parallel", [False, True])
def test_drop_path_of_fine_tuning_grows_linearly(parallel: bool) -> None:
    encoder = Encoder(Size(WIDTH, 5, 2, 32, parallel=parallel, drop_path=0.9), 4, SIZE // 4)
    finetune.set_drop_path(encoder, 0.4)  # also where pretraining dropped branches
    found = [[module.drop_prob for module in block.modules() if isinstance(module, DropPath)] for block in encoder.blocks]
    branches = 1 if parallel else 2
    assert found == [[]] + [[pytest.approx(rate)] * branches for rate in (0.1, 0.2, 0.3, 0.4)]
    assert not any(isinstance(module, PretrainingDropPath) for module in encoder.modules())
