"""What learns: the only place that sets ``requires_grad`` and the train or eval mode of frozen modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from medsam_tune.backbone.base import Backbone
from medsam_tune.errors import RecipeError

KEY = "model.backbone.trainable"


def freeze(module: nn.Module) -> None:
    """Stop every parameter of ``module`` from learning."""
    module.requires_grad_(False)


def set_trainable(backbone: Backbone, names: Sequence[str]) -> None:
    """Let the named parts learn, beside whatever learns already.

    A name is a part (``image_encoder``, ``prompt_encoder``, ``mask_decoder``) or a dotted path of a module or parameter below
    one (``image_encoder.neck``). A whole part leaves out what a loss on the single mask never reaches, as the backbone's
    anatomy says, so that plain ``ddp`` finds a gradient for every parameter that is declared to learn; naming those paths
    includes them.

    Args:
        backbone: Whose parts they are.
        names: What is to learn.

    Raises:
        RecipeError: If a name matches no parameter; the message lists what exists.
    """
    parts, anatomy = backbone.parts(), backbone.anatomy()
    parameters = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    for name in names:
        found = [key for key in parameters if _is_below(key, name)]
        if not found:
            raise RecipeError(_unknown_name(name, parameters))
        for key in found:
            if name not in parts or anatomy.reached(key, "single_mask"):
                parameters[key].requires_grad_(True)


def set_train_modes(module: nn.Module, training: bool) -> None:
    """Set train or eval mode so that frozen BatchNorm, Dropout and DropPath stay in eval.

    A module goes to train mode if it holds parameters and all of them learn; one without parameters follows its parent; where
    some learn and some do not, the module itself stays in eval and its children are decided one by one.

    A tuner's wrapper around a frozen layer carries the attribute ``trains_with_tuner = True`` and goes to train mode itself,
    with its dropout.

    Meant for a backbone (whose ``train`` calls it): further up, a module without parameters such as a box source with jitter
    would follow a parent that is partly frozen.

    Args:
        module: The root; without parameters it follows ``training``.
        training: False sets everything to eval.
    """
    _set_mode(module, training, what_learns(module), parent_trains=True)


def what_learns(module: nn.Module) -> dict[nn.Module, bool | None]:
    """Return for a module and all below whether every parameter learns, None where there is none; each is looked at once."""
    learns: dict[nn.Module, bool | None] = {}
    _note_what_learns(module, learns)
    return learns


def own_flags(module: nn.Module) -> list[bool]:
    """Return whether each parameter learns that lies in the module itself, not below."""
    # ``parameters(recurse=False)`` gives the same, ten times slower, and is asked for hundreds of modules at each checkpoint.
    return [p.requires_grad for p in module._parameters.values() if p is not None]


@dataclass(frozen=True)
class TrainableReport:
    """Say what learns.

    Attributes:
        rows: Group of parameters, how many of them learn, how many there are.
        trained: Parameters that learn, in all.
        total: Parameters in all.
    """

    rows: tuple[tuple[str, int, int], ...]
    trained: int
    total: int

    def table(self) -> str:
        """Return the rows and their sum as aligned plain text."""
        rows = [*self.rows, ("total", self.trained, self.total)]
        width = max(len("parameters"), *(len(name) for name, _, _ in rows))
        head = f"{'parameters':<{width}}  {'trained':>13}  {'total':>13}  {'share':>7}"
        lines = [f"{name:<{width}}  {t:>13,}  {n:>13,}  {t / max(1, n):>7.2%}" for name, t, n in rows]
        rule = "-" * len(head)
        return "\n".join([head, rule, *lines[:-1], rule, lines[-1]])


def trainable_report(module: nn.Module) -> TrainableReport:
    """Count what learns, by the first two names of a parameter's path, by three where such a group learns only in part.

    A parameter of which a tuner holds some entries at zero carries ``free_numbers``, how many others there are; these count.
    """
    counts = [(name, _free_numbers(p) if p.requires_grad else 0, p.numel()) for name, p in module.named_parameters()]
    rows = []
    for group, members in _grouped(counts, depth=2).items():
        trained, total = _sums(members)
        finer = _grouped(members, depth=3) if 0 < trained < total else {group: members}
        rows += [(name, *_sums(inner)) for name, inner in finer.items()]
    trained, total = _sums(counts)
    return TrainableReport(tuple(rows), trained, total)


def check_trainable(module: nn.Module, expected_names: Iterable[str]) -> None:
    """Check that exactly the parameters of these names learn.

    Raises:
        RecipeError: If others learn, or some of these do not; the message lists them.
    """
    expected, learning = set(expected_names), {name for name, p in module.named_parameters() if p.requires_grad}
    if expected == learning:
        return
    faults = []
    if learning - expected:
        faults.append(f"learn but should not: {_listed(learning - expected)}")
    if expected - learning:
        faults.append(f"should learn but are frozen or absent: {_listed(expected - learning)}")
    raise RecipeError(f"{KEY}: the trainable set is not what was asked for. Parameters that {'; that '.join(faults)}.")


def _note_what_learns(module: nn.Module, learns: dict[nn.Module, bool | None]) -> bool | None:
    own = own_flags(module)
    below = [_note_what_learns(child, learns) for child in module.children()]
    flags = [*own, *(flag for flag in below if flag is not None)]
    learns[module] = all(flags) if flags else None
    return learns[module]


def _set_mode(module: nn.Module, training: bool, learns: dict[nn.Module, bool | None], *, parent_trains: bool) -> None:
    own = learns[module]
    trains = (parent_trains if own is None else own) or getattr(module, "trains_with_tuner", False)
    module.training = training and trains
    for child in module.children():
        _set_mode(child, training, learns, parent_trains=trains)


def _is_below(key: str, path: str) -> bool:
    return key == path or key.startswith(f"{path}.")


def _unknown_name(name: str, keys: Iterable[str]) -> str:
    """Name what exists at the deepest level of the path that does exist."""
    keys = list(keys)
    prefix = name
    while prefix and not any(_is_below(key, prefix) for key in keys):
        prefix = prefix.rpartition(".")[0]
    below = [key[len(prefix) + 1 :] if prefix else key for key in keys if not prefix or _is_below(key, prefix)]
    choices = list(dict.fromkeys(key.partition(".")[0] for key in below))
    return f"{KEY}: {name!r} names no parameter. {'Below ' + prefix if prefix else 'The parts'}: {', '.join(choices)}."


def _grouped(counts: Iterable[tuple[str, int, int]], *, depth: int) -> dict[str, list[tuple[str, int, int]]]:
    groups: dict[str, list[tuple[str, int, int]]] = {}
    for row in counts:
        groups.setdefault(".".join(row[0].split(".")[:depth]), []).append(row)
    return groups


def _free_numbers(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "free_numbers", parameter.numel()))


def _sums(counts: Iterable[tuple[str, int, int]]) -> tuple[int, int]:
    rows = list(counts)
    return sum(trained for _, trained, _ in rows), sum(total for _, _, total in rows)


def _listed(names: Iterable[str], limit: int = 8) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more
