"""Methods as the command line has them: ``spsa[sigma=1e-3,directions=8]`` or ``path/to/file.py:Name[...]``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dldw.errors import DldwError, UnknownNameError
from dldw.registry import METHODS, Method, method, unknown

if TYPE_CHECKING:
    from dldw.tasks.task import Settings

_FORM = re.compile(r"(?P<target>[^\[\]]+)(?:\[(?P<settings>[^\[\]]*)\])?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
SAME_ESTIMATE = ("checkpoint", "reversible", "evaluate")
"""Settings that change what an estimate costs and not what it is: they share the tuning of the plain method."""


@dataclass(frozen=True)
class Spec:
    """A method with the settings it was given.

    Attributes:
        target: The registered name, or ``path/to/file.py:Name``.
        given: The settings given, in their order.
    """

    target: str
    given: tuple[tuple[str, Any], ...] = ()

    @property
    def label(self) -> str:
        """The method's name in every table and record: the spec in one canonical spelling."""
        settings = ",".join(f"{k}={_spelled(v)}" for k, v in self.given)
        return f"{self.target}[{settings}]" if settings else self.target

    @property
    def method(self) -> Method:
        """The method itself, imported."""
        return find_method(self.target)

    @property
    def tuned_as(self) -> Spec:
        """The spec whose tuned settings this one shares."""
        return Spec(self.target, tuple(p for p in self.given if p[0] not in SAME_ESTIMATE))

    def settings(self, tuned: Settings) -> dict[str, Any]:
        """Everything ``Method.build`` is given: the tuned settings of the method, and over them those given."""
        method = self.method
        found = tuned.get(self.tuned_as.label, tuned.get(self.target, {}))
        return {k: v for k, v in found.items() if k in method.settings} | dict(self.given)

    def rows(self, tuned: Settings) -> int | None:
        """The size of the method's batches, where the task lets each have its own."""
        rows: int | None = tuned.get(self.tuned_as.label, tuned.get(self.target, {})).get("rows")
        return rows


def parse(text: str) -> Spec:
    """The spec that ``text`` spells.

    Raises:
        UnknownNameError: A method or setting that does not exist; the text has the list and the nearest match.
        DldwError: The form is wrong, or a value is not of its setting's kind.

    Example:
        >>> parse("spsa[directions=8, sigma=1e-3]").label
        'spsa[directions=8,sigma=0.001]'
    """
    form = _FORM.fullmatch(text.strip())
    if form is None:
        raise DldwError(
            f"{text!r} is no method: write name or name[setting=value,setting=value], as in spsa[sigma=1e-3]."
        )
    target = form["target"].strip()
    known = find_method(target).settings
    given: dict[str, Any] = {}
    for pair in filter(None, map(str.strip, (form["settings"] or "").split(","))):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not value:
            raise DldwError(f"{pair!r} in {text!r} is no setting: write setting=value, as in spsa[sigma=1e-3].")
        if name not in known:
            raise UnknownNameError(unknown("setting", name, known, of=target))
        if name in given:
            raise DldwError(f"{text!r} gives {name} twice. Give it once.")
        given[name] = _checked(name, _value(value), known[name], target)
    return Spec(target, tuple(given.items()))


def parse_all(texts: Iterable[str]) -> list[Spec]:
    """The specs that ``texts`` spell, each once, in their order."""
    return list({spec.label: spec for spec in map(parse, texts)}.values())


def find_method(target: str) -> Method:
    """The method registered as ``target``, or the class in a file of the user's."""
    if target in METHODS or ".py:" not in target:
        try:
            return method(target)
        except UnknownNameError as error:
            raise UnknownNameError(f"{error} A method of your own is given as path/to/file.py:Name.") from None
    from dldw.card import Card
    from dldw.tasks.userfile import load_class

    factory = load_class(target, "method")
    if not isinstance(getattr(factory, "card", None), Card):
        raise DldwError(
            f"method {target} has no card: give {factory.__name__} a class attribute card = dldw.Card(...), which says what "
            "it claims, needs and costs. Without it the forwards it takes cannot be counted."
        )
    return Method(target, factory)


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _spelled(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _checked(name: str, value: Any, default: Any, target: str) -> Any:
    """``value`` where it is of the kind of the setting's default; a default of None says nothing of the kind."""
    kind = type(default)
    if default is None or value is None or kind not in _KINDS or type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise DldwError(
        f"setting {name} of {target} must be {_KINDS[kind]}, got {value!r}. Its default is {_spelled(default)}."
    )
