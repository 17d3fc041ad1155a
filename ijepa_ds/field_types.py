"""Types of settings with their ranges, and how a setting is declared; pydantic checks them (`config.build`)."""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictStr


def key(default: Any, description: str, **marks: bool | str) -> Any:
    """Declare a field of a section.

    Args:
        default: its default; `...`: the key is required.
        description: its meaning, for the JSON schema and the documentation.
        marks: `free`: may change when a run resumes. `later`: added after 0.1.0 and left out of the fingerprint at its
            default, so that older runs resume. `only_with`: "KEY=VALUE", the choice without which it has no effect.
    """
    metadata = {"description": description, "json_schema_extra": dict(marks)}
    return field(default=MISSING if default is ... else default, metadata=metadata)


def _parse(value: Any) -> Any:
    """YAML 1.1 reads `1e-3`, which has no dot, as text."""
    try:
        return float(value) if isinstance(value, str) and value.isascii() and "_" not in value else value
    except ValueError:
        return value


def _check_order(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    if pair[0] > pair[1]:
        raise ValueError("a <= b")
    return pair


def _check_ascending(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if any(a >= b for a, b in zip(values, values[1:], strict=False)):
        raise ValueError("ascending")
    return values


def _listed(value: Any) -> Any:
    """A single number is a list of one."""
    return [value] if isinstance(value, int | float | str) and not isinstance(value, bool) else value


def _check_level(value: int) -> int:
    if value == 0:
        raise ValueError("a whole number other than 0")
    return value


def _check_limit(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError("whole from 1 on")
    return int(value) if value == int(value) else value


_T = TypeVar("_T")
_PARSED = BeforeValidator(_parse)  # stands last: the JSON schema loses ranges that follow it
_FINITE = Field(strict=True, allow_inf_nan=False)

Flag = StrictBool
Text = StrictStr
Path = Annotated[str, Field(strict=True, pattern=r"\S")]
Whole = Annotated[int, Field(strict=True, ge=0)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]  # of a larger one the random numbers would use the low bits only
Count = Annotated[int, Field(strict=True, ge=1)]
Level = Annotated[int, Field(strict=True, ge=-20, le=20), AfterValidator(_check_level)]
NotNegative = Annotated[float, _FINITE, Field(ge=0), _PARSED]
Positive = Annotated[float, _FINITE, Field(gt=0), _PARSED]
Share = Annotated[float, _FINITE, Field(ge=0, lt=1), _PARSED]
Probability = Annotated[float, _FINITE, Field(ge=0, le=1), _PARSED]
Area = Annotated[float, _FINITE, Field(gt=0, le=1), _PARSED]
Deviation = Annotated[float, _FINITE, Field(gt=0, le=1), _PARSED]  # of pixels in 0 to 1
Sigma = Annotated[float, _FINITE, Field(gt=0, le=20), _PARSED]
Limit = Annotated[float, _FINITE, Field(ge=0, json_schema_extra={"whole": True}), _PARSED, AfterValidator(_check_limit)]
Number = Annotated[float, _FINITE, _PARSED]
Hue = Annotated[float, _FINITE, Field(ge=0, le=0.5), _PARSED]
Automatic = Annotated[_T | None, BeforeValidator(lambda value: None if value == "auto" else value)]
Ascending = Annotated[
    tuple[_T, ...], Field(min_length=1), AfterValidator(_check_ascending), Field(json_schema_extra={"ascending": True})
]
Several = Annotated[tuple[_T, ...], Field(min_length=1), Field(json_schema_extra={"several": True})]  # a number, or a list
OneOrSeveral = Annotated[Several[Number], BeforeValidator(_listed, json_schema_input_type=Number | Several[Number])]
Ordered = Annotated[tuple[_T, _T], AfterValidator(_check_order), Field(json_schema_extra={"ordered": True})]
