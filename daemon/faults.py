"""What pydantic finds wrong, as we tell it: a JSON pointer into what was sent, what must be there, and what to do.

Pure. Used wherever a model reads what people wrote: specs, requests, settings. The words are ours so that whoever wrote
a document reads of it, and not of the library that looked at it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

MAX_FAULTS = 20
"""Faults told of one document."""
MAX_TOLD = 40
"""Characters of a value that are told again."""
MAX_KNOWN = 12
"""Fields that are listed for whoever named another."""

PATTERNS: Mapping[str, str] = {
    r"^(user|group):.": "must be user:<id> or group:<name>",
    r"^[^\x00]*$": "must not have NUL characters",
    r"^[^*]*(\*[^*]*){0,4}$": "may have at most four *",
    r"^[a-zA-Z0-9][a-zA-Z0-9_-]{2,63}$": "must have 3 to 64 letters, digits, _ or -, and begin with a letter or digit",
    r"[^\s\x00-\x1f]": "must say something: it is blank",
    r"^[!-~]+$": "must be of letters, digits and signs of ASCII, without a space",
    r"^sha256:[0-9a-f]{64}$": "must be sha256: and 64 hexadecimal digits, as the approval tells it",
    r"^[A-Za-z0-9_-]{32}$": "must be the next_cursor of the page before, unchanged",
    r"^[A-Za-z0-9_=-]+$": "must be the next_cursor of the page before, unchanged",
    r"^[A-Za-z0-9._-]{1,100}$": "must have 1 to 100 letters, digits, points, _ or -",
    "^(front|runner|both)$": "must be front, runner or both",
    "^(DEBUG|INFO|WARNING|ERROR)$": "must be DEBUG, INFO, WARNING or ERROR",
    "^(json|text)$": "must be json or text",
    "^(off|console)$": "must be off or console",
}
"""Every pattern of our models in words; a test keeps it whole."""


def faults_of(
    error: ValidationError, model: type[BaseModel] | None = None, *, at: str = ""
) -> tuple[tuple[str, str], ...]:
    """The faults as (JSON pointer below ``at``, message) pairs, at most ``MAX_FAULTS``; of ``model``, if it is known.

    Pydantic counts only valid items, so a tuple of faulty ones is "too short" besides: that is not told.
    """
    faults = error.errors(include_url=False)
    around = {fault["loc"][:end] for fault in faults for end in range(len(fault["loc"]))}
    told = [fault for fault in faults if not (fault["type"] == "too_short" and fault["loc"] in around)]
    return tuple((at + pointer(fault["loc"]), worded(fault, model)) for fault in told[:MAX_FAULTS])


def pointer(place: tuple[int | str, ...]) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join(f"/{escape(part)}" for part in place)


def escape(part: int | str) -> str:
    """A part of a JSON pointer (RFC 6901 §3)."""
    return str(part).replace("~", "~0").replace("/", "~1")


def worded(fault: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    """What is wrong at the place of one fault, and what would be right."""
    within = _model_at(model, fault["loc"][:-1])
    if fault["type"] == "missing":
        return _missing(within, fault["loc"])
    if fault["type"] == "extra_forbidden":
        return _unknown(within, fault["loc"])
    say = WORDS.get(fault["type"])
    return say(fault.get("ctx", {}), fault["input"]) if say else fault["msg"].removeprefix("Value error, ")


def _must(be: str) -> Callable[[Mapping[str, Any], Any], str]:
    return lambda _, given: f"must be {be}, not {_told(given)}{_quotes(be, given)}"


def _than(limit: str, how: str) -> Callable[[Mapping[str, Any], Any], str]:
    return lambda limits, given: f"must be {how} {limits[limit]}, not {_told(given)}"


WORDS: Mapping[str, Callable[[Mapping[str, Any], Any], str]] = {
    **dict.fromkeys(("string_type", "string_sub_type"), _must("text")),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), _must("a whole number")),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), _must("a number")),
    **dict.fromkeys(("bool_type", "bool_parsing"), _must("true or false")),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), _must("an object")),
    **dict.fromkeys(("list_type", "tuple_type"), _must("a list")),
    "literal_error": lambda limits, given: f"must be {limits['expected']}, not {_told(given)}",
    "string_too_short": lambda limits, _: (
        "must not be empty" if limits["min_length"] == 1 else f"must have at least {limits['min_length']} characters"
    ),
    "string_too_long": lambda limits, given: f"may have at most {limits['max_length']} characters; it has {len(given)}",
    "string_pattern_mismatch": lambda limits, _: PATTERNS.get(limits["pattern"], f"must match {limits['pattern']}"),
    "too_short": lambda limits, _: f"must have at least {_items(limits['min_length'])}",
    "too_long": lambda limits, given: f"may have at most {_items(limits['max_length'])}; it has {len(given)}",
    "greater_than": _than("gt", "more than"),
    "greater_than_equal": _than("ge", "at least"),
    "less_than": _than("lt", "less than"),
    "less_than_equal": _than("le", "at most"),
}
"""What is said by the type of a fault, from its limits and what was given."""


def _told(given: object) -> str:
    """A value as it is told again: itself where it is short, else what it is."""
    match given:
        case None | bool() | float():
            return json.dumps(given)
        case int():
            return str(given) if abs(given) < 10**MAX_TOLD else "so large a number"
        case str():
            inside = json.dumps(given, ensure_ascii=False)[1:-1].replace('\\"', '"')
            return f"'{inside}'" if len(given) <= MAX_TOLD else "a long text"
        case list() | tuple():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "that"


def _quotes(be: str, given: object) -> str:
    """What YAML and JSON make of quotes, or of none, is the commonest of these faults."""
    if be == "text" and isinstance(given, bool | int | float):
        return ": put it in quotes"
    if isinstance(given, str) and (
        given in {"true", "false"} if be == "true or false" else be.endswith("number") and given.isdecimal()
    ):
        return ": leave its quotes out"
    return ""


def _items(number: int) -> str:
    return "1 item" if number == 1 else f"{number} items"


def _missing(within: type[BaseModel] | None, place: tuple[int | str, ...]) -> str:
    described = _fields(within).get(str(place[-1])) if place else None
    if not described:
        return "is required"
    first = described.partition(". ")[0].rstrip(".")
    return f"is required: {first[0].lower() + first[1:] if first[1:2].islower() else first}"


def _unknown(within: type[BaseModel] | None, place: tuple[int | str, ...]) -> str:
    known = list(_fields(within))
    near = get_close_matches(str(place[-1])[:MAX_TOLD], known, n=1)
    if near:
        return f"is not known here: did you mean {near[0]}?"
    if 0 < len(known) <= MAX_KNOWN:
        return f"is not known here: leave it out, or use one of {', '.join(known)}"
    return "is not known here: leave it out"


def _fields(model: type[BaseModel] | None) -> dict[str, str | None]:
    """What a model's fields are called, and what each is."""
    fields = model.model_fields if model is not None else {}
    return {field.alias or name: field.description for name, field in fields.items()}


def _model_at(model: type[BaseModel] | None, place: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that reads what stands there."""
    for part in place:
        if model is None:
            return None
        if isinstance(part, str):
            by_name = {field.alias or name: field for name, field in model.model_fields.items()}
            model = _model_in(by_name[part].annotation) if part in by_name else None
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model within a type such as a list of it; ours have no unions of models."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(within) for within in get_args(annotation))
    return next((model for model in found if model is not None), None)
