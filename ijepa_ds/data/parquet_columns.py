"""The columns of a parquet file that hold images, their names and their classes.

Hugging Face `datasets` stores what its columns mean in the schema's metadata, and images as struct<bytes, path>.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ijepa_ds.data.row_groups import BYTES
from ijepa_ds.errors import UserError

PATH, LABEL = "path", "label"  # the field of an image's name; the usual name of the column of classes
METADATA = b"huggingface"
_NO_CLASS = -1  # what Hugging Face writes for the hidden labels of a test set


@dataclass(frozen=True)
class Columns:
    """Which columns are read.

    Attributes:
        image: Column of the images.
        path: Leaf of their names; empty if there is none.
        label: Column of the classes; empty if there is none.
        classes: Names of the classes by number; None: the column's values are the names.
    """

    image: str
    path: str
    label: str
    classes: tuple[str, ...] | None

    def class_of(self, value: object) -> str | None:
        """Return the class that a value of the label column means; None: it has none.

        Raises:
            ValueError: The value is no class.
        """
        if value is None or value == "" or value == _NO_CLASS:
            return None
        if isinstance(value, str):
            return value
        number = int(value)  # type: ignore[call-overload]
        if number < 0 or (self.classes is not None and number >= len(self.classes)):
            known = f"0 to {len(self.classes) - 1}" if self.classes else "0 or more"
            raise ValueError(f"label {number}, expected {known}, or -1 for no class")
        return str(number) if self.classes is None else self.classes[number]


def find_columns(schema: pa.Schema, where: str, image: str = "", label: str = "") -> Columns:
    """Find the columns of a file.

    Args:
        schema: Of the file.
        where: The file's name in messages.
        image: As `data.image_column`; empty: find it.
        label: As `data.label_column`; empty: find it.

    Raises:
        UserError: There is no such column, or several.
    """
    features = _features(schema, where)
    image = image or _only(_images(schema, features), where, "images", "data.image_column (--image-column)", schema)
    _check(schema, image, where, "images: binary or struct<bytes, path>", _holds_images)
    label = label or _only(_labels(schema, features), where, "", "data.label_column (--label-column)", schema)
    if label:
        _check(schema, label, where, "classes: integers or text", _holds_classes)
    names = features.get(label, {}).get("names")
    if names is not None and (not isinstance(names, list) or len(set(map(str, names))) < len(names)):
        raise UserError(f"{where}: the metadata of column {label!r} must list the names of the classes, each once")
    kind = schema.field(image).type
    path = f"{image}.{PATH}" if pa.types.is_struct(kind) and kind.get_field_index(PATH) >= 0 else ""
    return Columns(image, path, label, None if names is None else tuple(map(str, names)))


def _features(schema: pa.Schema, where: str) -> dict[str, dict[str, Any]]:
    """What Hugging Face's metadata says about each column; empty without metadata."""
    text = (schema.metadata or {}).get(METADATA)
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: the metadata {METADATA.decode()!r} of its schema cannot be read ({error!r})") from error
    return {name: feature for name, feature in features.items() if isinstance(feature, dict) and name in schema.names}


def _images(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> list[str]:
    """Columns of images: those that the metadata names, else structs with bytes, else bytes."""
    named = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    usable = [field.name for field in schema if _holds_images(field.type)]
    structs = [name for name in usable if pa.types.is_struct(schema.field(name).type)]
    return named or structs or usable


def _labels(schema: pa.Schema, features: dict[str, dict[str, Any]]) -> list[str]:
    named = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    return named or [field.name for field in schema if field.name == LABEL and _holds_classes(field.type)]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index(BYTES) >= 0 and _holds_images(kind.field(BYTES).type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_classes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _only(found: list[str], where: str, required: str, key: str, schema: pa.Schema) -> str:
    if len(found) > 1:
        raise UserError(f"{where} has several such columns, {', '.join(found)}: choose one with {key}")
    if required and not found:
        raise UserError(f"{where} has no column of {required} (binary or struct<bytes, path>); it has {_described(schema)}")
    return found[0] if found else ""


def _check(schema: pa.Schema, name: str, where: str, expected: str, fits: Any) -> None:
    if schema.names.count(name) != 1:
        raise UserError(f"{where} has {schema.names.count(name)} columns {name!r}, expected one; it has {_described(schema)}")
    if not fits(schema.field(name).type):
        raise UserError(
            f"{where}: column {name!r} is {schema.field(name).type}, expected {expected}; it has {_described(schema)}"
        )


def _described(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema) or "no columns"
