"""The part of a result that a path (JMESPath) finds.

A path can be written to double a value at every step, so what a search does and makes is bounded.
"""

from math import isfinite
from typing import Any, cast

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.functions import Functions, signature
from jmespath.visitor import Options, TreeInterpreter

from taskorch.domain.errors import InvalidInput, shown

CHARACTERS = 500
STEPS = 1_000_000  # of a search: visits of its parts, and items of what these make
SIZE = 262_144  # items and characters of anything that it makes
TOO_MUCH = f"it makes more than {SIZE} items and characters of it, or takes too many steps"
MAKERS = (  # the parts of a path that make new values; the others only find some
    *("multi_select_list", "multi_select_dict", "flatten", "projection", "value_projection", "filter_projection"),
    "function_expression",
)


def check(path: Any) -> None:
    """Raise InvalidInput for what is no path."""
    if isinstance(path, str) and len(path) > CHARACTERS:
        raise InvalidInput(f"path {shown(path)} has {len(path)} characters; at most {CHARACTERS} are allowed.")
    try:
        jmespath.compile(path)
    except (JMESPathError, TypeError, AttributeError, ValueError, RecursionError):
        raise InvalidInput(
            f"path {shown(path)} is no JMESPath; write it like 'output', 'items[0].url' or 'json.version'."
        ) from None


def search(path: str, document: Any) -> Any:
    """What the path finds in a document, None for nothing. Raises ValueError when it does not fit or goes too far."""
    search = _Search()
    try:
        found = search.visit(jmespath.compile(path).parsed, document)
        search.weigh(found)
    except (JMESPathError, ArithmeticError, TypeError, RecursionError) as error:
        raise ValueError(shown(error)) from None
    return found


class _Functions(Functions):
    @signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, array: list[str]) -> str:
        if len(separator) * len(array) > SIZE:
            raise ValueError(TOO_MUCH)
        return separator.join(array)


OPTIONS = Options(custom_functions=_Functions())


class _Search(TreeInterpreter):
    """One search, with the steps that it has left."""

    def __init__(self) -> None:
        super().__init__(OPTIONS)
        self._left = STEPS

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self._step()
        made = super().visit(node, *args, **kwargs)
        if node["type"] in MAKERS:
            self.weigh(made)
        return made

    def weigh(self, value: Any) -> None:
        """Raise ValueError for a value that is too large, the parts that it has in several places counted in each."""
        size, items = 0, [value]
        while items:
            item = items.pop()
            self._step()
            size += 1
            match item:
                case str():
                    size += len(item)
                case list():
                    items += cast(list[Any], item)
                case dict():
                    items += [part for pair in cast(dict[str, Any], item).items() for part in pair]
                case float() if not isfinite(item):
                    raise ValueError(f"it makes {item}, which JSON cannot hold")
                case None | bool() | int() | float():
                    pass
                case _:
                    raise ValueError("it makes an expression, and no value")
            if size + len(items) > SIZE:
                raise ValueError(TOO_MUCH)

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ValueError(TOO_MUCH)
