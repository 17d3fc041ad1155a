"""Commands of which DeepSpeed's launcher makes a traceback are refused in one line each, before it is started."""

from pathlib import Path

import pytest

from ijepa_ds import cli
from ijepa_ds.cluster.launcher import launcher_problems

REST = ["--module", "ijepa_ds.train", "--config", "run.yaml", "--deepspeed_config", "zero2.json"]


@pytest.mark.parametrize(
    ("words", "environment", "gpu", "message"),
    [
        (["--num_gpus", "2"], {}, False, ""),
        (["--num_gpus", "2"], {"DS_ACCELERATOR": "cuda"}, False, "has no NVIDIA GPU: unset it, or export DS_ACCELERATOR=cpu"),
        (["--num_gpus", "2"], {"DS_ACCELERATOR": "cuda"}, True, ""),
        (["--include", "localhost:0,1"], {}, False, "--include localhost:0,1: it counts GPUs, and this machine has none"),
        (["--include=localhost:0,1"], {}, True, ""),
        (["-i", "localhost:0"], {}, False, ""),
        (["--hostfile", "nowhere"], {}, True, "--hostfile nowhere: there is no such file. DeepSpeed would train on this host"),
        (["-H", "hosts"], {}, True, "hosts:1: expected 'NAME slots=N', found 'one two'"),
        (["--hostfile", "one"], {}, True, "one has one host, far.invalid: DeepSpeed would start its ranks on this host"),
        (["--hostfile", "one", "--force_multi"], {}, True, ""),
        (["--hostfile", "own"], {}, True, ""),
        (["--num_gpus", "1", *REST, "--include", "a:1"], {}, False, ""),  # of the script
    ],
)
def test_problems(
    words: list[str], environment: dict, gpu: bool, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hosts").write_text("one two\n")
    Path("one").write_text("far.invalid slots=2\n")
    Path("own").write_text("127.0.0.1 slots=2\n")
    found = launcher_problems(["/usr/bin/deepspeed", *words, *REST], environment, gpu)
    assert len(found) == bool(message) and message in "".join(found)
    assert launcher_problems(["torchrun", *words, *REST], environment, gpu) == []


def test_supervise_refuses_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["supervise", "--run", "x", "--", "deepspeed", "--hostfile", "nowhere", *REST]) == 2
    assert "--hostfile nowhere: there is no such file" in capsys.readouterr().err
