"""The JSON schema accepts the shipped runs, refuses wrong ones, and makes the tables of the documentation."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ijepa_ds.cli import main
from ijepa_ds.config import ConfigError, command, load
from ijepa_ds.config.build import json_schema, nodes
from ijepa_ds.config.sizes import SIZES

REPOSITORY = Path(__file__).parents[2]
RUNS = sorted(path for path in (REPOSITORY / "configs").glob("*.yaml") if not path.name.startswith("ladder"))


def written(path: Path) -> dict[str, Any]:
    """A YAML file as editors read it: YAML 1.2, in which 1e-3 is a number."""

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = copy.deepcopy(yaml.SafeLoader.yaml_implicit_resolvers)

    pattern = yaml.resolver.re.compile(r"[-+]?[0-9][0-9]*(\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", pattern, list("-+0123456789"))
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


def errors(run: dict[str, Any]) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    checker = jsonschema.Draft202012Validator(json_schema())
    return [".".join(map(str, error.absolute_path)) for error in checker.iter_errors(run)]


def test_the_schema_is_valid() -> None:
    pytest.importorskip("jsonschema").Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_runs_are_accepted(path: Path) -> None:
    assert errors(written(path)) == []


GOOD = {
    "run": {"dir": "runs/x"},
    "data": {"source": "images"},
    "model": {"name": "tiny"},
    "optimization": {"batch_size": 8, "steps": 6, "warmup_steps": 1},
}


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("run", {"sed": 3}),
        ("run", {"seed": -1}),
        ("run", {"dir": ""}),
        ("run", {"log_every": "often"}),
        ("data", {"loader": "dalli"}),
        ("data", {"crop_scale": [0.0, 1.0]}),
        ("data", {"crop_scale": [0.5]}),
        ("data", {"blur_sigma": [0.1, 21]}),
        ("data", {"color_jitter": [0.4, 0.4, 0.4, 0.6]}),
        ("data", {"mean": [0.5, 0.5, 1.0]}),
        ("data", {"horizontal_flip": 1}),
        ("model", {"name": "hug"}),
        ("model", {"depth": 0}),
        ("model", {"predictor": {"dept": 3}}),
        ("model", {"drop_path": 1.0}),
        ("optimization", {"lr": 0}),
        ("optimization", {"batch_size": None}),
        ("optimisation", {}),
    ],
)
def test_the_schema_refuses_what_reading_refuses(section: str, values: dict[str, Any], tmp_path: Path) -> None:
    wrong = {**GOOD, section: {**GOOD.get(section, {}), **values}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    with pytest.raises(ConfigError):
        load(path)
    assert errors(GOOD) == []
    assert errors(wrong)


def test_every_key_has_a_description_and_names_come_from_their_table() -> None:
    assert all(node["description"] for node in nodes().values())
    assert nodes()["model.name"]["enum"] == list(SIZES)


def test_the_command_prints_or_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
    assert main(["config", "schema", "--out", str(tmp_path / "schema.json")]) == 0
    assert json.loads((tmp_path / "schema.json").read_text(encoding="utf-8")) == json_schema()
    assert capsys.readouterr().out == ""
    assert main(["config", "schema", "--markdown"]) == 0
    assert capsys.readouterr().out == command.tables()


def test_the_page_has_the_generated_tables() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert command.tables() in page, "replace the tables by the output of: ijepa-ds config schema --markdown"


def test_importing_the_configuration_loads_no_framework() -> None:
    code = "import sys, ijepa_ds.config.published, ijepa_ds.config.deepspeed_json; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "deepspeed"} & set(loaded)
