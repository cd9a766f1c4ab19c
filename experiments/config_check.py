"""What is wrong in a config, all of it at once, whoever wrote it: a flag, a file or a program."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, get_args, get_origin

from experiments.built_in import BUILT_IN, architecture_path
from experiments.config import SweepConfig
from experiments.entries import parse_fix, show, static_errors, table_name
from experiments.objectives import are_several, parse_objectives, parse_requirements
from experiments.privacy.accounting import LARGEST_EPSILON
from mlops.errors import UsageError, choose
from mlops.tracking import RELEASES

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\- ]*")
_CLUSTER = re.compile(r"(tcp|tls|ws|wss|ucx)://\S+:\d+|.+\.json")
_OWN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def as_flag(field_name: str) -> str:
    """Returns a field's name as on the command line: `timeout_s` is `--timeout-s`."""
    return "--" + field_name.replace("_", "-")


def refuse(wrong: list[str], where: str = "") -> None:
    """Raises a UsageError that says all that is wrong, if anything is."""
    if wrong:
        text = where + "; ".join(one.rstrip(".") for one in wrong)
        raise UsageError(text if text.endswith("?") else f"{text}.")


def find_wrong(config: SweepConfig, spell: Callable[[str], str] = as_flag) -> list[str]:
    """Returns what is wrong in a config, a sentence each.

    Args:
        config: Of which nothing is trusted, not even the types.
        spell: How the user writes a field's name.
    """
    types_wrong = dict(_find_wrong_types(config, spell))
    wrong = list(types_wrong.values())
    sound = {
        one.name: getattr(config, one.name)
        for one in dataclasses.fields(config)
        if one.name not in types_wrong
    }
    wrong += _find_out_of_range(sound, spell)
    for name in ("experiment", "study"):
        value = sound.get(name)
        if value is not None and not _NAME.fullmatch(value):
            wrong.append(
                f"{spell(name)} may hold letters, digits, '.', '_', '-' and spaces and begins "
                f"with a letter or digit, got {value!r}"
            )
    if (sound.get("experiment") or "").endswith(RELEASES):
        wrong.append(f"{spell('experiment')} may not end in {RELEASES}: there promotions write")
    cluster = sound.get("cluster")
    if cluster is not None and not _CLUSTER.fullmatch(cluster):
        wrong.append(
            f"{spell('cluster')} must be a Dask scheduler's address, as tcp://HOST:8786, or its "
            f"file, as scheduler.json; got {cluster!r}"
        )
    if sound.get("population") is not None and sound.get("sampler") == "grid":
        wrong.append(
            f"{spell('population')} asks for trials of one shape, and {spell('sampler')} grid has "
            "its own order; use tpe or random"
        )
    wrong += _find_not_private(sound, spell)
    if sound.get("warm_start") is not None and sound.get("warm_start") == sound.get("study"):
        wrong.append(f"{spell('warm_start')} and {spell('study')} name the same sweep")
    wrong += _find_wrong_goals(sound, spell)
    wrong += _find_wrong_architectures(sound.get("architectures"), spell)
    names = sound.get("architectures") or tuple(BUILT_IN)
    wrong += _find_wrong_tables(sound.get("space", {}), names)
    wrong += _find_wrong_fixes(sound.get("fix", ()), names, spell)
    return wrong


_LEAST: Final = {
    "trials": 1,
    "epochs": 1,
    "workers": 1,
    "threads": 1,
    "seeds": 2,
    "population": 2,
    "trials_per_gpu": 1,
    "seed": 0,
    "split_seed": 0,
}
_BITS: Final = {"seed": 32, "split_seed": 64}


def _find_out_of_range(sound: Mapping[str, Any], spell: Callable[[str], str]) -> Iterator[str]:
    for name, least in _LEAST.items():
        value = sound.get(name)
        if isinstance(value, int) and value < least:
            yield f"{spell(name)} must be at least {least}, got {value!r}"
    for name, bits in _BITS.items():
        if sound.get(name, 0) >= 2**bits:
            yield f"{spell(name)} must be below 2**{bits}, got {sound[name]!r}"
    for name in ("timeout_s", "budget_gpu_hours", "gpu_price", "dp_clip"):
        value = sound.get(name)
        if value is not None and not 0 < value < math.inf:
            yield f"{spell(name)} must be above 0 and finite, got {value!r}"
    size = sound.get("image_size")
    if size is not None and min(size) < 1:
        yield f"{spell('image_size')} must be at least 1 pixel each way, got {size[0]} {size[1]}"


def _find_not_private(sound: Mapping[str, Any], spell: Callable[[str], str]) -> Iterator[str]:
    """What no private training can have, or has no use for without one."""
    epsilon, delta = sound.get("dp_epsilon"), sound.get("dp_delta")
    if epsilon is not None and not 0 < epsilon <= LARGEST_EPSILON:
        most = f"{LARGEST_EPSILON:g}, above which it promises nothing"
        yield f"{spell('dp_epsilon')} must be above 0 and at most {most}; got {epsilon!r}"
    if delta is not None and not 0 < delta < 1:
        yield f"{spell('dp_delta')} must be above 0 and below 1, got {delta!r}"
    if epsilon is None:
        for name in ("dp_delta", "dp_clip"):
            if sound.get(name) is not None:
                yield f"{spell(name)} is of private trainings; give {spell('dp_epsilon')} too"
        return
    why = {
        "population": "trains many in one program, which has no private step",
        "refit": "learns from the validation rows, which chose the params without any noise",
    }
    for name, reason in why.items():
        if sound.get(name):
            yield f"{spell(name)} cannot be with {spell('dp_epsilon')}: it {reason}"
    if sound.get("precision", "float32") != "float32":
        yield (
            f"{spell('precision')} {sound['precision']} cannot be with {spell('dp_epsilon')}: "
            "gradients are clipped and the noise is added in float32"
        )


def _find_wrong_goals(sound: Mapping[str, Any], spell: Callable[[str], str]) -> Iterator[str]:
    """What cannot be compared by, or not together with a sampler or a pruner."""
    names = sound.get("objectives", ())
    named, wrong = parse_objectives(names)
    requirements, unreadable = parse_requirements(sound.get("require", ()))
    yield from (f"{spell('objectives')}: {one}" for one in (wrong if names else ()))
    yield from (f"{spell('require')} {one}" for one in unreadable)
    objective = sound.get("objective", "accuracy")
    quality = [one.name for one in named if one.task == "classifier"]
    if objective != "accuracy" and quality and quality[0] != f"val_{objective}":
        yield (
            f"{spell('objective')} {objective} and {spell('objectives')} {quality[0]} differ; "
            f"give {spell('objectives')} alone"
        )
    is_multi = are_several(named)
    pruner = sound.get("pruner", "none")
    if is_multi and pruner not in ("auto", "none"):
        yield (
            f"{spell('pruner')} {pruner} cannot judge by several objectives; leave it out, or name "
            "one objective"
        )
    if sound.get("sampler") == "cmaes" and (is_multi or requirements):
        what = "several objectives" if is_multi else spell("require")
        yield f"{spell('sampler')} cmaes knows nothing of {what}; use tpe or random"


def _find_wrong_architectures(
    names: tuple[str, ...] | None, spell: Callable[[str], str]
) -> Iterator[str]:
    if names is None:
        return
    if not names:
        yield f"{spell('architectures')} is empty; {choose('', BUILT_IN)}"
    for name in dict.fromkeys(names):
        if ":" in name and not _OWN.fullmatch(name):
            yield f"the architecture {name!r} is not of the form module:Class"
        elif name not in BUILT_IN and ":" not in name:
            yield f"unknown architecture {name!r}; {choose(name, BUILT_IN)}"
    if len(set(map(architecture_path, names))) < len(names):
        yield f"{spell('architectures')} names one twice"


def _find_wrong_tables(
    space: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]
) -> Iterator[str]:
    for name, table in space.items():
        if not _is_known(name, names):
            yield f"{table_name(name)}: unknown architecture {name!r}; {_choose_of(name, names)}"
        yield from static_errors(table, table_name(name))


def _find_wrong_fixes(
    entries: tuple[str, ...], names: tuple[str, ...], spell: Callable[[str], str]
) -> Iterator[str]:
    fixes, wrong = parse_fix(entries)
    yield from (f"{spell('fix')} {one}" for one in wrong)
    for fix in fixes:
        if fix.architecture is not None and not _is_known(fix.architecture, names):
            yield (
                f"{spell('fix')} {fix.key}: unknown architecture {fix.architecture!r}; "
                + _choose_of(fix.architecture, names)
            )
        yield from static_errors({fix.key: fix.value}, spell("fix"))


def _is_known(name: str, names: tuple[str, ...]) -> bool:
    """Tells whether the search knows an architecture, or might if it were given others.

    A file may say more than is searched this time (`--architectures cnn` beside a file for four).
    Where own architectures are searched, another own one is taken for a slip of the pen.
    """
    if name in BUILT_IN or name in names:
        return True
    return bool(_OWN.fullmatch(name)) and not any(":" in one for one in names)


def _choose_of(name: str, names: tuple[str, ...]) -> str:
    return choose(name, dict.fromkeys((*BUILT_IN, *names)))


def _find_wrong_types(
    config: SweepConfig, spell: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    for name, hint in typing.get_type_hints(SweepConfig).items():
        value, words = getattr(config, name), []
        if get_origin(hint) in (types.UnionType, typing.Union):
            if value is None:
                continue
            kinds = [one for one in get_args(hint) if one is not types.NoneType]
            hint = kinds[0]
            words = [word for one in kinds[1:] for word in get_args(one)]
            if value in words:
                continue
        shown = show(value)
        if get_origin(hint) is Literal:
            valid = get_args(hint)
            if value not in valid:
                yield name, f"{spell(name)} {shown} is unknown; {choose(str(value), valid)}"
        elif not _TYPES[hint][0](value):
            expected = " or ".join([_TYPES[hint][1], *words])
            yield name, f"{spell(name)} must be {expected}, got {shown}"


def _is_text(value: Any) -> bool:
    """Tells whether a value is text that says something and can be written down as UTF-8."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _all(values: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(values, (tuple, list)) and all(map(fits, values))


_TYPES: Final[dict[Any, tuple[Callable[[Any], bool], str]]] = {
    str: (_is_text, "a text, in UTF-8 and not empty"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
    int: (_is_whole, "a whole number"),
    float: (lambda value: _is_whole(value) or isinstance(value, float), "a number"),
    tuple[str, ...]: (lambda value: _all(value, _is_text), "a list of texts, none of them empty"),
    tuple[int, int]: (
        lambda value: _all(value, _is_whole) and len(value) == 2,
        "two whole numbers, height and width",
    ),
    Mapping[str, Mapping[str, Any]]: (
        lambda value: isinstance(value, dict) and _all([*value.values()], _is_dict),
        "tables by architecture, as [space.cnn]",
    ),
}


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)
