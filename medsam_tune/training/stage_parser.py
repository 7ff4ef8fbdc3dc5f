"""LightningCLI whose parser has the called stage alone and is made once in a process: reading all signatures takes 0.15 s."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.pytorch.cli import LightningCLI

SUBCOMMANDS = ("fit", "validate", "test", "predict")


class StageCLI(LightningCLI):
    """Make the parser of the stage that ``args`` opens with; of all stages where it opens with none.

    A parser is not changed by parsing, so objects of one class that are called for the same stage share it. What
    ``add_arguments_to_parser`` adds must therefore depend on nothing but the class and the stage.

    Attributes:
        stage_called: ``fit``, ``validate``, ``test`` or ``predict``; None without a stage.
        known_keys: Every key of the recipe that the parser itself has, those of classes that a recipe names aside.
    """

    stage_called: str | None = None
    known_keys: list[str]
    _made: ClassVar[dict[tuple[type, bool, str | None], dict[str, Any]]] = {}

    def __init__(self, *, args: list[str], run: bool, parser_kwargs: dict[str, Any], **settings: Any) -> None:  # noqa: ANN401
        self.stage_called = args[0] if run and args and args[0] in SUBCOMMANDS else None
        of_stages = {name: dict(parser_kwargs) for name in self.subcommands()} if run else {}
        super().__init__(args=args, run=run, parser_kwargs=parser_kwargs | of_stages, **settings)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the stages that the parser knows, each with the arguments of the trainer's method that it lacks."""
        every = LightningCLI.subcommands()
        return every if self.stage_called is None else {self.stage_called: every[self.stage_called]}

    def setup_parser(self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]) -> None:
        """Take the parser that was made before, or make it."""
        which = type(self), add_subcommands, self.stage_called
        if which not in self._made:
            before = set(vars(self))
            super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
            made = {name: value for name, value in vars(self).items() if name not in before}
            self._made[which] = made | {"known_keys": list(self._parser(self.stage_called).get_defaults().keys())}
        vars(self).update(self._made[which])
