"""Files that users get from others are data: opening one opens no socket, starts, unpickles and changes nothing."""

import ast
import ctypes
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tests.cases.making import coded, photo, tar_of
from tests.data.parquet_cases import write as write_parquet
from tests.evals_cases import write_blind_run
from tests.tripwire import guard_natively
from tests.waiting import limit
from tests.weights_cases import random_timm_model

REPOSITORY = Path(__file__).parents[1]
NAME, SIZE = "vit_base_patch16_gap_224", {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 48, "patch_size": 8}
URL = "http://127.0.0.1:9/weights.bin"
COMMAND = "!!python/object/apply:os.system ['touch {}']"


class Touch:
    """A pickle that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return (open, (self.path, "w"))


def timm_folders(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Folders of timm's whose config.json asks for more than a network; `notes.bin` is what it may point to."""
    evil = root / "notes.bin"
    evil.write_bytes(pickle.dumps(Touch(root / "touched")))
    weights = random_timm_model(NAME, **SIZE).state_dict()
    about = {"architecture": NAME, "model_args": SIZE}
    argument = {"checkpoint_path": str(evil), "pretrained": True, "pretrained_cfg": {"url": URL}, "cache_dir": str(root)}
    argument |= {"pretrained_cfg_overlay": {"file": str(evil)}, "norm_layer": "os.system", "features_only": True, "depth": -1}
    cases = {f"model_args.{key}": about | {"model_args": SIZE | {key: value}} for key, value in argument.items()}
    for name in ("hf-hub:timm/vit", "local-dir:../timm0", "resnet18", f"{NAME}:x", "../x", "vit"):
        cases[f"architecture is {name!r}"] = about | {"architecture": name}
    cases["model_args is a list"] = about | {"model_args": [1]}
    cases["pretrained_cfg.mean"] = about | {"pretrained_cfg": {"mean": "x", "std": [1, 1, 1]}}
    cases[""] = about | {"pretrained_cfg": {"url": URL, "file": str(evil), "hf_hub_id": "timm/vit"}}  # taken, and not read
    for number, (message, described) in enumerate(cases.items()):
        folder = root / f"timm{number}"
        folder.mkdir()
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(described))
        yield "weights", folder, message


def other_weights(root: Path) -> Iterator[tuple[str, Path, str]]:
    for name, old in (("new.pth", False), ("old.pth", True)):
        torch.save({"encoder": Touch(root / "touched")}, root / name, _use_new_zipfile_serialization=not old)
        yield "weights", root / name, "would run code" if not old else "refused"
    folder = root / "hub"
    folder.mkdir()
    theirs = {"embeddings.patch_embeddings.projection.weight": torch.zeros(48, 3, 8, 8)}
    save_file(theirs, folder / "model.safetensors")
    (folder / "evil.py").write_text(f"open({str(root / 'touched')!r}, 'w')")
    (folder / "config.json").write_text(json.dumps({"model_type": "ijepa", "auto_map": {"AutoModel": "evil.Model"}}))
    yield "weights", folder, "hub"  # as far as the names of the tensors
    shutil.copytree(folder, root / "split")
    (root / "split" / "model.safetensors").rename(root / "model.safetensors")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (root / "split" / "model.safetensors.index.json").write_text(json.dumps(index))
    yield "weights", root / "split", "split/model.safetensors: no such file"


def configurations(root: Path) -> Iterator[tuple[str, Path, str]]:
    text = f"run: {{dir: out}}\noptimization: {COMMAND.format(root / 'touched')}\n"
    for kind in ("config", "published"):
        (root / f"{kind}.yaml").write_text(text)
        yield kind, root / f"{kind}.yaml", "could not determine a constructor"


def images(root: Path) -> Iterator[tuple[str, Path, str]]:
    picture = coded(photo(1))
    (root / "pictures").mkdir()
    (root / "pictures" / "a.jpg").write_bytes(picture)
    (root / "list.txt").write_text(f"pictures/a.jpg\n{URL}\n|touch {root}/touched\n")
    yield "images", root / "list.txt", "no such file"
    (root / "good.txt").write_text("pictures/a.jpg\n")
    yield "images", root / "good.txt", ""
    members = {"../../out.jpg": picture, "b.jpg": picture, f"{root}/touched.jpg": picture}
    (root / "x.tar").write_bytes(tar_of(members, links={"c.jpg": (tarfile.SYMTYPE, "/etc/passwd")}))
    yield "images", root / "x.tar", ""
    (root / "mix.yaml").write_text(f"sources: {COMMAND.format(root / 'touched')}\n")
    yield "images", root / "mix.yaml", "mix.yaml"
    (root / "x.index").write_bytes(b"IJEPAIDX" + pickle.dumps(Touch(root / "touched")))
    yield "images", root / "x.index", "x.index"


def postscript() -> bytes:
    """Pillow starts Ghostscript to draw it, whatever the file's name."""
    return coded(Image.fromarray(np.full((48, 64), 1, np.uint8)), "EPS")


def parquets(root: Path) -> Iterator[tuple[str, Path, str]]:
    picture = coded(photo(1))
    names = ["../../out.jpg", f"{root}/touched.jpg", URL, f"|touch {root}/touched"]
    write_parquet(root / "names.parquet", [picture] * 4, names=names, labels=[0, 1, 0, 1], classes=["../x", COMMAND])
    yield "images", root / "names.parquet", ""
    write_parquet(root / "paths.parquet", [None, picture], names=[f"{URL}.jpg", "/etc/passwd"])
    yield "images", root / "paths.parquet", ""  # rows without bytes are replaced, whatever their path
    pickled = pickle.dumps(Touch(root / "touched"))  # what pyarrow before 14.0.1 ran
    extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled}
    for place in ("image", "other"):
        columns = {"image": pa.array([picture], pa.binary()), "other": pa.array([b"x"], pa.binary())}
        fields = [pa.field(name, pa.binary(), metadata=extension if name == place else None) for name in columns]
        table = pa.table(list(columns.values()), schema=pa.schema(fields, metadata={"pandas": pickled.hex()}))
        pq.write_table(table, root / f"{place}.parquet")
        # older versions of pyarrow keep the unknown extension as a type of its own, which is no column of images
        plain = not hasattr(pa, "PyExtensionType")
        yield "images", root / f"{place}.parquet", "several such columns" if plain else "not a JPEG" if place == "image" else ""
    (root / "saved").mkdir()
    (root / "saved" / "dataset_dict.json").write_bytes(pickled)
    yield "images", root / "saved", "datasets.save_to_disk"


def disguised(root: Path) -> Iterator[tuple[str, Path, str]]:
    """Programs in the place of pictures and numbers."""
    (root / "pictures").mkdir()
    (root / "pictures" / "a.jpg").write_bytes(postscript())
    yield "images", root / "pictures", "not a JPEG"
    yield "sample", root / "pictures" / "a.jpg", "not a JPEG"
    writer = EventFileWriter(str(root / "events"))
    event = Event(step=1)
    event.summary.value.add(tag="images/masks").image.encoded_image_string = postscript()
    writer.add_event(event)
    writer.close()
    yield "picture", root / "events", "cannot identify image file"
    for task, folder in (("segment", "masks"), ("depth", "depth")):
        for number, (ending, content, message) in enumerate(
            (
                ("png", postscript(), "cannot identify image file"),
                ("npy", b"", "allow_pickle"),
                ("npy", pickle.dumps(Touch(root / "touched")), "allow_pickle"),
                ("tif", pickle.dumps(Touch(root / "touched")), "cannot identify image file"),
            )
        ):
            place = root / f"{task}{number}"
            (place / "images").mkdir(parents=True)
            (place / folder).mkdir()
            (place / "images" / "a.jpg").write_bytes(coded(photo(1)))
            (place / folder / f"a.{ending}").write_bytes(content)
            if not content:
                np.save(place / folder / "a.npy", np.array([[Touch(root / "touched")]], dtype=object), allow_pickle=True)
            yield task, place, message


def written_by_runs(root: Path) -> Iterator[tuple[str, Path, str]]:
    """What runs and commands of this toolkit leave, and read again."""
    pickled = pickle.dumps(Touch(root / "touched"))
    for name in ("pickled", "text"):
        (root / name).mkdir()
        line = pickled if name == "pickled" else b"\"__import__('os').system('true')\""
        (root / name / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 1.0}\n' + line + b"\n")
        yield "metrics", root / name, "metrics.jsonl:2: damaged"
        (root / name / "eval" / "knn").mkdir(parents=True)
        (root / name / "eval" / "knn" / "result.json").write_bytes(line)
        yield "scores", root / name, "result.json"
        (root / name / "scenes.json").write_bytes(line)
        yield "scenes", root / name, "scenes.json is not a file of scenes"
        (root / name / "x.journal").write_bytes(b'["00000000000000000000000000000000", []]\n' + line + b"\n")
        yield "journal", root / name / "x.journal", ""
    (root / "cache").mkdir()
    kept = root / "cache" / "kept.features.safetensors"
    save_file({"features": torch.zeros(2, 3)}, kept)
    yield "features", kept, ""
    for kind in ("device", "ladder"):
        (root / f"{kind}.yaml").write_text(f"name: {COMMAND.format(root / 'touched')}\n")
        yield kind, root / f"{kind}.yaml", "could not determine a constructor"
    for name, settings, message in (
        ("nebula", {"nebula": {"enabled": True, "persistent_storage_path": str(root)}}, "nebula"),
        ("nvme", {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/"}}}, "offload_param"),
        ("wandb", {"wandb": {"enabled": True}}, ""),  # for a training that it is given to; reading it does nothing
    ):
        (root / f"{name}.json").write_text(json.dumps(settings))
        yield "deepspeed", root / f"{name}.json", message
    (root / "pickled.json").write_bytes(pickled)
    yield "deepspeed", root / "pickled.json", "pickled.json"


def the_rest(root: Path) -> Iterator[tuple[str, Path, str]]:
    (root / "hostfile").write_text(f"-oProxyCommand=touch${{IFS}}{root}/touched slots=1\n$(touch$IFS{root}/touched) slots=1\n")
    yield "hostfile", root / "hostfile", "is not a host name"
    (root / "env").write_text(f"A=$(touch {root}/touched)\n")
    yield "environment", root / "env", "not taken literally"
    run = write_blind_run(root)
    yield "run", run, ""
    checkpoint = next((run / "checkpoints").glob("step_*"))
    yield "checkpoint", checkpoint, ""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    outside = root / "outside.safetensors"
    shutil.copy(checkpoint / manifest["files"][0]["file"], outside)
    other = run / "checkpoints" / "step_00000099"
    shutil.copytree(checkpoint, other)
    manifest["files"][0]["file"] = os.path.relpath(outside, other)
    (other / "manifest.json").write_text(json.dumps(manifest))
    yield "checkpoint", other, "outside"
    (root / "report").mkdir()
    (root / "report" / "config.yaml").write_text(f"run: {COMMAND.format(root / 'touched')}\n")
    yield "report", root / "report", "could not determine a constructor"
    (root / "decoder").mkdir()
    (root / "decoder" / "decoder.json").write_text(json.dumps({"format": 2, "shape": {"_class_name": "os.system"}}))
    (root / "decoder" / "decoder.safetensors").write_bytes(pickle.dumps(Touch(root / "touched")))
    yield "decoder", root / "decoder", "decoder"


def test_opening_a_file_does_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "control").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    cases = [("control", tmp_path / "control", "")]
    for make in (timm_folders, other_weights, configurations, images, parquets, disguised, written_by_runs, the_rest):
        (tmp_path / make.__name__).mkdir()
        cases += make(tmp_path / make.__name__)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tests.tripwire"],
        input=json.dumps([(kind, str(path)) for kind, path, _ in cases]),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=limit(300),
    )
    assert done.returncode == 0, f"{done.returncode} (-{signal.SIGSYS:d}: native code opened a socket): {done.stdout[-500:]}"
    control, *found = map(json.loads, done.stdout.splitlines())
    assert len(found) == len(cases) - 1, done.stderr
    seen = {event.split(" ")[0] for event in control["did"]}
    assert {"subprocess.Popen", "pickle.find_class", "open"} < seen and any(event.startswith("socket.") for event in seen)
    did = {(one["kind"], one["path"]): one["did"] for one in found if one["did"]}
    assert did == {}
    crashes = ("builtins.TypeError", "builtins.KeyError", "builtins.AttributeError")
    wrong = [
        (path, message, one["error"])
        for one, (_, path, message) in zip(found, cases[1:], strict=True)
        if message not in one["error"] or bool(message) != bool(one["error"]) or one["error"].startswith(crashes)
    ]
    assert wrong == []
    assert sorted(tmp_path.rglob("*")) == before


def test_the_kernel_ends_a_process_whose_native_code_opens_a_socket() -> None:
    child = os.fork()
    if not child:
        if not guard_natively():
            os._exit(7)
        ctypes.CDLL(None).socket(2, 1, 0)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.waitstatus_to_exitcode(status) == 7:
        pytest.skip("no seccomp filter on this machine: sockets of native code are not looked for")
    assert os.waitstatus_to_exitcode(status) == -signal.SIGSYS


def test_every_reader_is_told_to_run_nothing() -> None:
    """Pillow opens listed formats only, numpy and torch unpickle nothing, YAML makes plain values."""
    needed = {"Image.open": "formats", "np.load": "allow_pickle", "torch.load": "weights_only"}
    never = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "pickle.load", "pickle.loads", "eval", "exec", "os.system"}
    calls, wrong = 0, []
    for file in (REPOSITORY / "ijepa_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            calls += name in needed
            if name in needed and needed[name] not in {word.arg for word in node.keywords} or name in never:  # type: ignore[attr-defined]
                wrong.append(f"{file.relative_to(REPOSITORY)}: {name}")
    assert calls > 5
    assert wrong == ["ijepa_ds/distributed/exchange.py: pickle.loads"]  # between ranks: docs/launch.md


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained", "act_layer"])
def test_an_argument_of_timm_that_describes_no_network_is_named(key: str, tmp_path: Path) -> None:
    from ijepa_ds.weights.facts import WeightsError
    from ijepa_ds.weights.open import open_source

    (tmp_path / "notes.bin").write_bytes(pickle.dumps(Touch(tmp_path / "touched")))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    about = {"architecture": NAME, "model_args": SIZE | {key: str(tmp_path / "notes.bin")}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(WeightsError, match=rf"config.json: model_args.{key}: not an argument that describes a plain ViT"):
        open_source(tmp_path)
    assert not (tmp_path / "touched").exists()
