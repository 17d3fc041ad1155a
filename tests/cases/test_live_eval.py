"""An image that cannot be read does not stop the evaluation of a run."""

from types import SimpleNamespace

import torch

from ijepa_ds.config import Config, DataConfig
from ijepa_ds.config.schema import EvalConfig, OptimizationConfig, RunConfig
from ijepa_ds.config.sizes import ModelConfig, size_of
from ijepa_ds.model.vit import Encoder, initialise
from ijepa_ds.training import eval_images, live_eval
from tests.cases.making import coded, photo, write_tree


def test_the_evaluation_of_a_run_leaves_unreadable_images_out(tmp_path, monkeypatch, caplog):
    broken = coded(photo(9), "PNG")
    broken = broken[:60] + bytes(200) + broken[260:]  # the header is whole
    files = {
        f"{part}/{c}/{i}.png": coded(photo(10 * (c == "b") + i), "PNG")
        for part in ("train", "test")
        for c in "ab"
        for i in range(3)
    }
    write_tree(tmp_path, files | {"test/a/broken.png": broken, "train/b/broken.png": broken})
    cfg = Config(
        run=RunConfig(dir=str(tmp_path / "run"), checkpoint_every=1),
        data=DataConfig(source=str(tmp_path / "train"), crop_size=32),
        model=ModelConfig(name="tiny", width=16, depth=1, heads=2, patch_size=8),
        optimization=OptimizationConfig(batch_size=2, steps=2, warmup_steps=1),
        eval=EvalConfig(every=1, train=str(tmp_path / "train"), test=str(tmp_path / "test"), k=1),
    )
    (tmp_path / "run").mkdir()
    encoder = Encoder(size_of(cfg.model), 8, cfg.grid)
    initialise(encoder, 0)
    weights = [(name, parameter.detach().flatten()) for name, parameter in encoder.named_parameters()]
    monkeypatch.setattr(live_eval, "gathered", lambda layout, average: iter(weights))
    monkeypatch.setattr(live_eval, "gather_on_first", lambda value: [value])
    monkeypatch.setattr(live_eval, "max_over_ranks", lambda value: value)
    ema = SimpleNamespace(layout=None, average=None)
    engine = SimpleNamespace(device=torch.device("cpu"), compute_dtype=torch.float32, ema=ema)
    eval_images.find(cfg)
    live = live_eval.LiveEval(cfg, engine, eval_images.load(cfg, (0, 1)), 0, 1, 0)
    for step in (1, 2):
        scores = live.run(step, lambda: None)
        assert scores["eval/1-NN"] == 100.0  # training and test images are the same
    assert caplog.text.count("1 images are left out") == 2 and "broken.png" in caplog.text
