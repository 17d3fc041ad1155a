"""`ijepa-ds --help`, `ijepa-ds VERB --help`, words that are no verb, and the options that verbs share."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ijepa_ds import cli
from ijepa_ds.arguments import check_at_least, device_of
from ijepa_ds.evals import __main__ as evals
from ijepa_ds.train import parse_arguments
from ijepa_ds.train_decoder import train as train_decoder
from tests.processes import modules_after


def check_help(text: str, repository: Path) -> None:
    """It has an example, and a page that exists."""
    assert re.search(r"^example: (ijepa-ds|deepspeed) ", text, re.MULTILINE)
    page = re.search(r"^page: (docs/[\w-]+\.md)$", text, re.MULTILINE)
    assert page and (repository / page[1]).is_file()


def test_help_starts_with_training_and_groups_the_verbs(capsys: pytest.CaptureFixture, repository: Path) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("deepspeed --num_gpus 8 --module ijepa_ds.train") < text.index("data index")
    assert "docs/running.md" in text and (repository / "docs/running.md").is_file()
    places = [text.index(f"\n{purpose}\n") for purpose in cli.GROUPS]
    assert places == sorted(places)
    for words, verb in cli.VERBS.items():
        assert f"  {words:<18}{verb.help}\n" in text
        assert "\n" not in verb.help
    assert max(map(len, text.splitlines())) <= 110


def test_every_verb_is_in_exactly_one_group() -> None:
    assert sum(map(len, cli.GROUPS.values())) == len(cli.VERBS)
    assert [*cli.GROUPS] == ["prepare data", "plan and check", "run", "evaluate", "look", "weights", "measure"]


@pytest.mark.parametrize("words", cli.VERBS)
def test_help_of_a_verb_has_an_example_and_a_page(words: str, capsys: pytest.CaptureFixture, repository: Path) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        cli.main([*words.split(), "--help"])
    text = capsys.readouterr().out
    verb = cli.VERBS[words]
    assert verb.help in text and f"example: {verb.example}" in text and verb.example.startswith(f"ijepa-ds {words}")
    check_help(text, repository)
    assert f"ijepa-ds {words}" in (repository / verb.page).read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [words for words in cli.VERBS if words not in ("supervise",)])
def test_the_example_of_a_verb_is_a_command_it_takes(words: str) -> None:
    args = cli.build_parser(words).parse_args(cli.VERBS[words].example.split()[1 + len(words.split()) :])
    assert args.verb == words


@pytest.mark.parametrize("kind", ["masks", "pca", "similarity", "attention", "predict", "decode"])
def test_help_of_a_kind_of_picture(kind: str, capsys: pytest.CaptureFixture, repository: Path) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        cli.main(["visualize", kind, "--help"])
    check_help(capsys.readouterr().out, repository)


@pytest.mark.parametrize("first", ["data", "bench", "decoder"])
def test_help_of_nested_verbs_lists_them(first: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main([first, "--help"]) == 0
    text = capsys.readouterr().out
    for words, verb in cli.VERBS.items():
        assert (f"  {words} " in text and verb.help in text) == words.startswith(f"{first} ")
    assert cli.main([first]) == 2
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("start", [parse_arguments, train_decoder, evals.main])
def test_help_of_what_deepspeed_starts(start, capsys: pytest.CaptureFixture, repository: Path) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        start(["--help"])
    check_help(capsys.readouterr().out, repository)


def test_no_help_waits_for_pytorch() -> None:
    starts = "import contextlib; from ijepa_ds import cli, train, train_decoder; from ijepa_ds.evals import __main__ as e"
    calls = "(train.parse_arguments, train_decoder.train, e.main)"
    verbs = "[cli.build_parser(words) for words in cli.VERBS]"
    tried = f"for call in {calls}:\n  with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None): call(['--help'])"
    loaded = modules_after(f"{starts}\n{verbs}\n{tried}")
    assert "ijepa_ds.options.bench" in loaded
    assert not loaded & {"torch", "timm", "deepspeed", "matplotlib", "sklearn"}


def test_choices_in_a_command_line_are_those_of_the_code() -> None:
    from ijepa_ds.decoder import network
    from ijepa_ds.evals import presets, settings, tasks
    from ijepa_ds.options import decoder, evals, visualize, weights
    from ijepa_ds.visualize import command
    from ijepa_ds.weights import formats

    assert evals.TASKS == tuple(tasks.TASKS) and evals.PRESETS == tuple(presets.PRESETS)
    assert evals.LAYERS == tuple(settings.LAYERS) and evals.PRECISIONS == tuple(settings.PRECISIONS)
    assert decoder.PRESETS == tuple(network.PRESETS) and weights.DTYPES == tuple(formats.DTYPES)
    assert visualize.KINDS.keys() == command.DRAW.keys()


def test_a_configuration_given_twice_is_refused(capsys: pytest.CaptureFixture) -> None:
    words = ["plan", "--config", "configs/in1k_vith14.yaml", "--config", "configs/quickstart.yaml"]
    with pytest.raises(SystemExit) as refused:
        cli.main(words)
    assert refused.value.code == 2
    said = capsys.readouterr().err
    assert "--config is given twice" in said and "in1k_vith14.yaml" in said and "quickstart.yaml" in said, said


def test_overrides_stand_anywhere(capsys: pytest.CaptureFixture, repository: Path) -> None:
    files = ["--config", str(repository / "configs/in1k_vith14.yaml")]
    rest = ["--deepspeed_config", str(repository / "ds_configs/zero2.json"), "--gpu", "a100-80g"]
    said = []
    for words in (
        ["data.crop_size=280", *files, "model.patch_size=20", *rest],
        [*files, *rest, "data.crop_size=280", "model.patch_size=20"],
    ):
        assert cli.main(["plan", *words]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


@pytest.mark.parametrize("words", [["--help"], ["plan", "--config", "configs/in1k_vith14.yaml", "--search"]])
def test_a_reader_that_leaves_is_no_error(words: list[str], repository: Path) -> None:
    """As `ijepa-ds ... | head`: nothing is said, and the exit code is that of a closed pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    options = ["--deepspeed_config", "ds_configs/zero2.json", "--nodes", "2", "--gpus-per-node", "8", "--gpu", "a100-80g"]
    command = [sys.executable, "-m", "ijepa_ds.cli", *words, *(options if words[0] == "plan" else [])]
    done = subprocess.run(command, cwd=repository, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_version(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ijepa_ds ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("pln --config x", "no verb 'pln'; did you mean 'plan'?"),
        ("data indx", "no verb 'data indx'; did you mean 'data index'?"),
        ("dta index", "no verb 'dta'; did you mean 'data'?"),
        ("index data/train", "no verb 'index'; did you mean 'data index'?"),
        ("visualise pca", "no verb 'visualise'; did you mean 'visualize'?"),
        ("xyzzy", "no verb 'xyzzy'; `ijepa-ds --help` lists all verbs"),
        ("train --config x", "deepspeed --num_gpus 8 --module ijepa_ds.train --config"),
    ],
)
def test_an_unknown_verb_is_refused_in_one_line(line: str, expected: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(line.split()) == 2
    shown = capsys.readouterr()
    assert expected in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_options_that_are_too_small_are_all_named() -> None:
    args = argparse.Namespace(batch_size=0, num=3, lr=None)
    check_at_least(args, num=3, lr=1)
    with pytest.raises(ValueError, match="^--num 3: expected at least 4\n--batch-size 0: expected at least 1$"):
        check_at_least(args, num=4, batch_size=1, lr=1)


def test_a_device_by_name() -> None:
    assert device_of("cpu").type == "cpu" and device_of("cuda:1").index == 1 and device_of("auto").type in ("cpu", "cuda")
