"""Checks inputs against a model's published JSON Schema and names every fault by its JSON pointer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from batchyard.errors import InvalidInput, MissingExtra, TooLarge
from batchyard.jobs import PayloadReference, parse_id
from batchyard.schemas import InputFault
from batchyard.strict_json import escape

MAX_FAULTS = 10
"""The most faults listed in one answer."""

PAYLOAD_MEMBER = "$payload"

Place = Callable[[int], str]
"""Index of an input → its JSON pointer in the request body."""


class Validator:
    """One compiled schema. Safe to share between threads."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Compile; ValueError where it is no JSON Schema. Never fetches a remote reference."""
        try:
            import jsonschema_rs
        except ImportError as error:
            raise MissingExtra(feature="validating inputs against a model's schema", extra="producer") from error
        # The mask keeps inputs out of answers and logs.
        self._validator: Any = jsonschema_rs.validator_for(dict(schema), mask="the value", offline=True)

    def check(self, values: Sequence[Any], *, place: Place, several: bool) -> None:
        """Raise InvalidInput naming the first faults among these inputs; a payload stands for whatever it holds."""
        is_valid = self._validator.is_valid
        if all(map(is_valid, values)):
            return
        faults: list[InputFault] = []
        for index, value in enumerate(values):
            if not is_valid(value):
                faults.extend(self._faults(value, index=index if several else None, pointer=place(index)))
                if len(faults) >= MAX_FAULTS:
                    break
        if faults:
            raise _invalid(faults[:MAX_FAULTS])

    def _faults(self, value: Any, *, index: int | None, pointer: str) -> Iterable[InputFault]:
        for error in self._validator.iter_errors(value):
            path = list(error.instance_path)
            if not _is_payload(_at(value, path)):
                place = pointer + "".join("/" + escape(step) for step in path)
                yield InputFault(pointer=place, detail=error.message, index=index)


def _invalid(faults: list[InputFault]) -> InvalidInput:
    first = faults[0]
    where = f"input {first.index}" if first.index is not None else "the input"
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    details: dict[str, Any] = {"pointer": first.pointer, "errors": faults}
    if first.index is not None:
        details["index"] = first.index
    return InvalidInput(
        f"{where} does not fit the model's schema: {first.detail} (at {first.pointer}){more}", **details
    )


def _at(value: Any, path: Sequence[Any]) -> Any:
    for step in path:
        value = value[step]
    return value


def _is_payload(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {PAYLOAD_MEMBER}


def payload_references(values: Sequence[Any], *, place: Place) -> list[PayloadReference]:
    """Which input names which payload, each pair once; InvalidInput for a reference that is no id."""
    references: list[PayloadReference] = []
    for index, value in enumerate(values):
        found: set[int] = set()
        pending = [value]
        while pending:
            item = pending.pop()
            if isinstance(item, list):
                pending.extend(item)
            elif _is_payload(item):
                number = parse_id(item[PAYLOAD_MEMBER]) if isinstance(item[PAYLOAD_MEMBER], str) else None
                if number is None:
                    raise unknown_payload(item[PAYLOAD_MEMBER], pointer=place(index), index=index)
                found.add(number)
            elif isinstance(item, dict):
                pending.extend(item.values())
        named = sorted(found)
        references += [PayloadReference(index=index, payload_id=number, pointer=place(index)) for number in named]
    return references


def unknown_payload(reference: object, *, pointer: str, index: int | None = None) -> InvalidInput:
    shown = f'"{reference}"' if isinstance(reference, str) and len(reference) <= 64 else "that value"
    details = {} if index is None else {"index": index}
    return InvalidInput(
        f"{shown} is no payload of yours: upload it with POST /v1/payloads first", pointer=pointer, **details
    )


def check_sizes(inputs: Sequence[bytes], *, max_input_bytes: int, several: bool) -> list[int]:
    """The length of each input in bytes; TooLarge for the first above the limit."""
    lengths = list(map(len, inputs))
    if max(lengths) > max_input_bytes:
        index = next(i for i, length in enumerate(lengths) if length > max_input_bytes)
        which, details = (f"input {index}", {"index": index}) if several else ("the input", {})
        raise TooLarge(
            f"{which} has {lengths[index]} bytes; the limit is {max_input_bytes}: upload it with POST /v1/payloads",
            limit=max_input_bytes,
            **details,
        )
    return lengths
