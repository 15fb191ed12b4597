"""Damage: to bytes, and to messages that still parse afterwards."""

from __future__ import annotations

from random import Random
from typing import Any

from google.protobuf.message import Message

_NUMBERS = (0, 1, 2, 3, 7, 8, 64, 127, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 62) + 1, (1 << 63) - 1)
_LIMITS = {"int32": 31, "uint32": 32, "int64": 63, "uint64": 64}


def damaged_bytes(data: bytes, random: Random) -> bytes:
    """A few bytes or words changed, dropped, or the file cut off."""
    result = bytearray(data)
    for _ in range(random.randint(1, 6)):
        if not result:
            break
        at = random.randrange(len(result))
        match random.randrange(6):
            case 0:
                result[at] = random.randrange(256)
            case 1:
                result[at] ^= 1 << random.randrange(8)
            case 2:
                at -= at % 4
                result[at : at + 4] = random.choice((*_NUMBERS[:12], len(data), at)).to_bytes(4, "little")[:4]
            case 3:
                del result[at : at + random.randint(1, 8)]
            case 4:
                result[at:at] = bytes(random.randrange(256) for _ in range(random.randint(1, 8)))
            case 5 if random.random() < 0.2:
                del result[at:]
    return bytes(result)


def damage(message: Message, random: Random) -> None:
    """Change a few fields, wherever they are; names are exchanged for other names of the same message."""
    for _ in range(random.randint(1, 4)):
        places: list[tuple[Any, Any]] = []
        texts: list[Any] = []
        _collect(message, places, texts)
        if not places:
            return
        # Few fields hold most of what there is: first choose what kind of field to change.
        kinds = sorted({field.full_name for _, field in places})
        kind = random.choice(kinds)
        owner, field = random.choice([place for place in places if place[1].full_name == kind])
        _change(owner, field, texts, random)


def _collect(message: Any, places: list[tuple[Any, Any]], texts: list[Any]) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            places.append((message, field))
            for value in getattr(message, field.name).values():
                if isinstance(value, Message):
                    _collect(value, places, texts)
            texts += [key for key in getattr(message, field.name) if isinstance(key, str)]
            continue
        repeated = _repeated(message, field)
        values = getattr(message, field.name) if repeated else [getattr(message, field.name)]
        present = bool(len(values)) if repeated else field.message_type is None or message.HasField(field.name)
        if present:
            places.append((message, field))
        for value in values if present and field.message_type is not None else ():
            _collect(value, places, texts)
        if field.cpp_type == field.CPPTYPE_STRING:
            texts += [value for value in values if value][:50]


def _repeated(message: Any, field: Any) -> bool:
    return hasattr(getattr(message, field.name), "extend")


def _change(owner: Any, field: Any, texts: list[Any], random: Random) -> None:
    values = getattr(owner, field.name)
    try:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _change_map(values, random)
        elif _repeated(owner, field):
            _change_repeated(values, field, texts, random)
        elif field.message_type is not None:
            owner.ClearField(field.name)
        else:
            setattr(owner, field.name, _other(values, field, texts, random))
    except (TypeError, ValueError):
        pass  # a value that the field does not take, such as half a character


def _change_map(values: Any, random: Random) -> None:
    keys = sorted(values, key=str)
    if not keys:
        return
    key, other = random.choice(keys), random.choice(keys)
    if random.random() < 0.5 or not isinstance(values[key], Message):
        del values[key]
    else:
        values[key].CopyFrom(values[other])


def _change_repeated(values: Any, field: Any, texts: list[Any], random: Random) -> None:
    at = random.randrange(len(values))
    match random.randrange(4):
        case 0:
            del values[at]
        case 1 if field.message_type is not None:
            values.add().CopyFrom(values[at])
        case 1:
            values.append(values[at])
        case 2 if field.message_type is not None:
            values[at].CopyFrom(values[random.randrange(len(values))])
        case _ if field.message_type is None:
            values[at] = _other(values[at], field, texts, random)


def _other(value: Any, field: Any, texts: list[Any], random: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((*_NUMBERS, *(-number for number in _NUMBERS), value + 1, value - 1))
    if isinstance(value, float):
        return random.choice((0.0, -1.0, float("nan"), float("inf")))
    if isinstance(value, bytes):
        return damaged_bytes(value, random) if random.random() < 0.5 else value[: random.randint(0, len(value))]
    known = [text for text in texts if isinstance(text, str)]
    return random.choice([*known, "", value + ":1", "^" + value, value + ":x:1", "é" * 20])
