"""Which media of several backbones one clip set can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, SpecMismatchError
from fsmer.preprocess.media import checked_specs

__all__ = ["group_specs"]


def group_specs(wanted: Mapping[str, Sequence[InputSpec]]) -> dict[str, tuple[InputSpec, ...]]:
    """Put the media that several backbones want into as few clip sets as can hold them.

    Two specs of one kind share a medium when they differ in nothing but channels (it gets those of both; readers pick
    theirs by name) and in a flow method that only one of them names. Backbones whose specs cannot be shared get a clip
    set of their own; each backbone goes to the first set that fits.

    Parameters
    ----------
    wanted : mapping of str to sequence of InputSpec
        Name -> its input specs.

    Returns
    -------
    dict of str to tuple of InputSpec
        Names joined by ``+`` -> specs of that clip set, sorted by kind.

    Examples
    --------
    >>> small, large = InputSpec("onset", (28, 28), ("red", "green", "blue"), "unit"), InputSpec("flow")
    >>> list(group_specs({"a": [small], "b": [large], "c": [InputSpec("flow", (56, 56))]}))
    ['a+b', 'c']
    """
    groups: list[tuple[list[str], dict[str, InputSpec]]] = []
    for name, specs in wanted.items():
        own = _united({}, specs)
        if own is None:
            raise SpecMismatchError(f"{name!r} asks for two different media of one kind; a clip holds one a kind.")
        for names, held in groups:
            both = _united(held, list(own.values()))
            if both is not None:
                names.append(name)
                held.update(both)
                break
        else:
            groups.append(([name], own))
    return {"+".join(names): tuple(held[kind] for kind in sorted(held)) for names, held in groups}


def _united(held: Mapping[str, InputSpec], specs: Sequence[InputSpec]) -> dict[str, InputSpec] | None:
    found = dict(held)
    for spec in specs:
        other = found.get(spec.kind)
        if other is None:
            found[spec.kind] = spec
            continue
        alike = replace(spec, channels=other.channels, flow_method=other.flow_method) == other
        if not alike or (None not in (spec.flow_method, other.flow_method) and spec.flow_method != other.flow_method):
            return None
        further = (name for name in spec.channels if name not in other.channels)
        found[spec.kind] = replace(
            other, channels=(*other.channels, *further), flow_method=other.flow_method or spec.flow_method
        )
    return found


def grouped_specs(
    specs: InputSpec | Sequence[InputSpec] | Mapping[str, Sequence[InputSpec]],
) -> dict[str, list[InputSpec]]:
    if isinstance(specs, Mapping):
        groups = group_specs(specs)
        named = {name if len(groups) > 1 else "": list(held) for name, held in groups.items()}
    else:
        listed = [specs] if isinstance(specs, InputSpec) else list(specs)
        united = _united({}, listed)
        if united is None:
            kinds = [spec.kind for spec in listed]
            kind = next(kind for kind in kinds if kinds.count(kind) > 1)
            both = " and ".join(spec.describe() for spec in listed if spec.kind == kind)
            raise SpecMismatchError(
                f"different media of kind {kind!r} were asked for ({both}), but a clip holds one a kind; give a "
                "mapping of name to specs, so that each gets a clip set of its own."
            )
        named = {"": [united[kind] for kind in sorted(united)]}
    if not named:
        raise DataError("no media were asked for; name at least one backbone or give at least one InputSpec.")
    return {name: checked_specs(held) for name, held in named.items()}
