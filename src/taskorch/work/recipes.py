"""The kinds `recipe:NAME`: commands that the operator has written in config.toml, run as every command is."""

import os
from collections.abc import Collection, Mapping
from typing import Any

from taskorch.domain import references
from taskorch.domain.errors import InvalidInput
from taskorch.domain.recipe import Recipe, filled, hole
from taskorch.domain.task import HIDDEN, RECIPE, Outcome, Task
from taskorch.work.attempt import Attempt, Remains
from taskorch.work.command import Command, Wanted
from taskorch.work.policy import Policy


class RecipeKind:
    """The kind of one recipe. Its program is allowed because the operator has written it, and found when this is made.

    So are a fixed `cwd` and fixed variables; TASKORCH_ALLOW_DIRS holds for the paths that a task gives.
    """

    in_process = False

    def __init__(self, name: str, recipe: Recipe, command: Command) -> None:
        """`command` does the work, and has the default number of starts. Raises InvalidInput without the program."""
        self.description = recipe.description
        self.max_attempts = recipe.max_attempts or command.max_attempts
        self.timeout_seconds = recipe.timeout_seconds
        self._name = RECIPE + name
        self._recipe = recipe
        self._command = command
        self._program = locate(name, recipe, command.policy)

    def check(self, payload: Mapping[str, Any]) -> None:
        """Raise InvalidInput when the slots do not take the payload, or its program or folder is not there now."""
        if references.KEY not in payload:
            self._wanted(payload, later=[name for name, value in payload.items() if references.find(value)])
        if not os.access(self._program, os.X_OK):
            raise InvalidInput(f"{self._name} cannot run: its program {self._program} is gone. Tell the user.")

    def payload_schema(self) -> dict[str, Any]:
        """The JSON schema of the payload."""
        return self._recipe.payload_schema()

    def shown(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        secret = self._recipe.secret
        return {name: HIDDEN if name in secret else value for name, value in payload.items()}

    async def run(self, attempt: Attempt) -> Outcome | None:
        return await self._command.carry_out(attempt, self._wanted)

    def has_ended(self, task: Task) -> bool:
        return self._command.has_ended(task)

    async def inspect(self, task: Task) -> Remains:
        return await self._command.inspect(task)

    def _wanted(self, payload: Mapping[str, Any], later: Collection[str] = ()) -> Wanted:
        recipe = self._recipe
        values = recipe.values(payload, later)
        for name in sorted(recipe.confined(values)):
            self._command.policy.below(values[name], f"payload.{name}", "path")
        cwd, roots = self._folder(values)
        stdin = None if recipe.stdin is None else filled(recipe.stdin, values)
        return Wanted(self._program, recipe.arguments(values), cwd, roots, recipe.variables(values), stdin)

    def _folder(self, values: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
        """The folder to run in, and the folders that it must be below when it runs."""
        cwd = self._recipe.cwd
        path = None if cwd is None else filled(cwd, values)
        if cwd is None or path is None:
            return self._command.start, ()
        slot = hole(cwd)
        if slot in self._recipe.confined(values):
            return self._command.policy.folder(path, f"payload.{slot}"), self._command.policy.roots
        return ANYWHERE.folder(path, f"payload.{slot}" if slot else f"The cwd of {self._name}"), ()


ANYWHERE = Policy("")


def load_recipes(recipes: Mapping[str, Recipe], command: Command) -> dict[str, RecipeKind]:
    """The kinds by their names. Raises InvalidInput for a recipe whose program is not there."""
    return {RECIPE + name: RecipeKind(name, recipe, command) for name, recipe in recipes.items()}


def locate(name: str, recipe: Recipe, policy: Policy) -> str:
    """The absolute path of a recipe's program. Raises InvalidInput."""
    return policy.locate(recipe.program, f"recipes.{name}: its program")
