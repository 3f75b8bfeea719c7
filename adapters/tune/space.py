"""What a search draws from: what plugins declare, a few keys of RecBole's, and what people add."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.search import Range, Search, is_whole, search_text, searches
from recplug.plugins.settings import idle

# Of RecBole's own keys, where the model has them.
HOST: Mapping[str, Search] = {
    "learning_rate": Range(1e-4, 1e-2, log=True),
    "weight_decay": [0.0, 1e-6, 1e-5, 1e-4],
    "reg_weight": Range(1e-6, 1e-2, log=True),
    "dropout_prob": Range(0.0, 0.6),
    "hidden_dropout_prob": Range(0.0, 0.6),
    "attn_dropout_prob": Range(0.0, 0.6),
    "message_dropout": Range(0.0, 0.5),
    "drop_ratio": Range(0.0, 0.5),
}
# The same, but only when they are named: a wider model is another model.
NAMED: Mapping[str, Search] = {
    "embedding_size": [32, 64, 128],
    "hidden_size": [32, 64, 128],
    "inner_size": [64, 128, 256],
    "n_layers": [1, 2, 3],
    "num_layers": [1, 2],
    "MAX_ITEM_LIST_LENGTH": [20, 50],
    "train_batch_size": [512, 1024, 2048],
}
# What the search itself decides.
OURS = ("model", "dataset", "plugin", "output_dir", "data_path", "config_files", "baseline", "resume", "resumable")
# What makes the scores of two trials scores of two things; a seed among them would choose the luckiest.
SAME = (
    *("seed", "reproducibility", "metrics", "topk", "valid_metric", "valid_metric_bigger", "eval_args", "mask_history"),
    *("benchmark_filename", "user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter"),
)
ALL = "all"  # a word of --space


@dataclass(frozen=True)
class Dimension:
    """One key of the search.

    Attributes:
        key: of a plugin (``prism.scale``) or of RecBole's.
        search: single values, or numbers between two.
        whole: whether numbers are whole ones.
        default: what the key is without a search; None where it is not known.
    """

    key: str
    search: Search
    whole: bool = False
    default: Any = None

    def holds(self, value: Any) -> bool:
        """Whether a search could draw ``value``."""
        if not isinstance(self.search, Range):
            return any(value == each and type(value) is type(each) for each in self.search)
        numbers = isinstance(value, (int, float)) and not isinstance(value, bool)
        return numbers and self.search.low <= value <= self.search.high

    def text(self) -> str:
        """For readers."""
        return search_text(self.search) + (", whole" if self.whole and isinstance(self.search, Range) else "")


def space(model: str, plugins: Sequence[str], words: Iterable[str] = (), *, fixed: Mapping[str, Any],
          host: Mapping[str, Any], check: Callable[[str, Any], None]) -> list[Dimension]:  # fmt: skip
    """What to draw from.

    Args:
        model: RecBole's name.
        plugins: names; the first keys of the space are theirs.
        words: ``KEY``, ``KEY,KEY``, ``KEY=low..high``, ``KEY=low..high:log``, ``KEY=a,b,c`` or ``all``; nothing means
            ``all``: whatever is declared.
        fixed: values that are given by key, and so left out of ``all``.
        host: RecBole's values for this model and data set.
        check: called with a key of RecBole's and a value from an end of what it draws from; raises what is wrong.

    Raises:
        RecplugError: for a key that there is not, and values that it does not take.
    """
    everything = _declared(model, plugins, host, HOST, fixed)
    asked = _parse(words)
    names = list(
        dict.fromkeys(name for key in (asked or {ALL: None}) for name in ([*everything] if key == ALL else [key]))
    )
    found = []
    for key in names:
        given = asked.get(key)
        if key in fixed:
            if key in asked:
                raise RecplugError(f"'{key}' is fixed at {fixed[key]} and in --space too; keep one of the two")
            continue
        dimension = _dimension(key, given, model, plugins, host)
        plugin, dot, setting = key.partition(".")
        _check(dimension, plugin if dot else "", setting, check)
        found.append(dimension)
    if not found:
        raise RecplugError("there is nothing to search; name keys with --space KEY=low..high")
    return found


def _declared(
    model: str,
    plugins: Sequence[str],
    host: Mapping[str, Any],
    table: Mapping[str, Search],
    fixed: Mapping[str, Any] | None = None,
) -> dict[str, Dimension]:
    """What plugins declare and would read at the fixed settings, and what ``table`` has of this model.

    A setting whose condition another searched setting decides is searched too.
    """
    from recplug.adapters.recbole.config.host_config import known_keys
    from recplug.plugins.registry import get

    found = {}
    for name in plugins:
        fields = get(name).settings.model_fields
        unread = _unread(name, fixed)
        for setting, search in searches(get(name).settings).items():
            if setting in unread:
                continue
            default = fields[setting].get_default(call_default_factory=True)
            found[f"{name}.{setting}"] = Dimension(
                f"{name}.{setting}", search, is_whole(fields[setting].annotation), default
            )
    known = known_keys(model)
    for key, search in table.items():
        if key in known and host.get(key) is not None:
            found[key] = Dimension(key, search, isinstance(host[key], int), host[key])
    return found


def _unread(plugin: str, fixed: Mapping[str, Any] | None) -> set[str]:
    """Settings that nothing reads, whatever the searched ones say; none where ``fixed`` is None."""
    from recplug.plugins.presets import settings_of
    from recplug.plugins.registry import get

    if fixed is None:
        return set()
    given = {key.partition(".")[2]: value for key, value in fixed.items() if key.startswith(f"{plugin}.")}
    searched = searches(get(plugin).settings).keys() - given.keys()
    return set(idle(settings_of(get(plugin), given), free=searched))


def _dimension(
    key: str, given: Search | None, model: str, plugins: Sequence[str], host: Mapping[str, Any]
) -> Dimension:
    from recplug.adapters.recbole.config.host_config import known_keys
    from recplug.plugins.registry import get

    declared = _declared(model, plugins, host, {**HOST, **NAMED})
    if key in OURS:
        raise RecplugError(f"'{key}' cannot be searched; the search itself decides it")
    if key in SAME:
        raise RecplugError(f"'{key}' cannot be searched: trials would not be comparable; set it with --fixed {key}=...")
    plugin, dot, setting = key.partition(".")
    if dot:
        fields = get(plugin).settings.model_fields
        if plugin not in plugins:
            raise RecplugError(f"--space {key}: the plugin '{plugin}' is not in use; add it with --plugin {plugin}")
        if setting not in fields:
            hint = did_you_mean(setting, fields) or f"; it has: {', '.join(fields)}"
            raise RecplugError(f"{plugin} has no setting '{setting}'{hint}")
    elif key not in known_keys(model):
        hint = did_you_mean(key, {*known_keys(model), *declared}) or f"; see RecBole's keys of {model}"
        raise RecplugError(f"{model} has no key '{key}'{hint}")
    if given is None:
        if key not in declared:
            raise RecplugError(f"--space {key}: nothing is declared for it; write {key}=low..high, or {key}=a,b,c")
        return declared[key]
    if dot:
        default = fields[setting].get_default(call_default_factory=True)
        whole = is_whole(fields[setting].annotation)
    else:
        default, whole = host.get(key), _whole(given, host.get(key))
    return Dimension(key, given, whole, default)


def _whole(given: Search, default: Any) -> bool:
    """Whether a key of RecBole's, whose type is that of its default, is drawn in whole numbers."""
    ends = [given.low, given.high] if isinstance(given, Range) else given
    return not isinstance(default, float) and all(isinstance(end, int) for end in ends)


def _check(dimension: Dimension, plugin: str, setting: str, check: Callable[[str, Any], None]) -> None:
    """Try what can be drawn: every choice, and both ends of a range."""
    from recplug.plugins.presets import settings_of
    from recplug.plugins.registry import get

    search = dimension.search
    values = [search.low, search.high] if isinstance(search, Range) else list(search)
    for value in values:
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise RecplugError(f"--space {dimension.key}: {value!r} is more than one value; choices are single ones")
        if dimension.whole and isinstance(value, float) and not value.is_integer():
            raise RecplugError(f"--space {dimension.key}: {value} is no whole number, as {dimension.key} is")
        if plugin:
            settings_of(get(plugin), {setting: value})
        else:
            check(dimension.key, value)


def _parse(words: Iterable[str]) -> dict[str, Search | None]:
    """What people type: by key, its values, or None for what is declared."""
    found: dict[str, Search | None] = {}
    for word in words:
        names, equals, values = word.partition("=")
        keys = [name.strip() for name in names.split(",") if name.strip()]
        if not keys or (equals and "=" in values):
            raise RecplugError(
                f"--space {word} is not understood; write KEY, KEY=low..high:log or KEY=a,b,c, one a --space"
            )
        for key in keys:
            if key in found:
                raise RecplugError(f"--space {key} is given twice; give it once")
            found[key] = None
        if equals:
            found[keys[-1]] = _values(keys[-1], values.strip())
    return found


def _values(key: str, text: str) -> Search:
    from recplug.adapters.recbole.config.host_config import literal

    if match := re.fullmatch(r"(.+?)\.\.(.+?)(:log)?", text):
        low, high = literal(match[1]), literal(match[2])
        if not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in (low, high)):
            raise RecplugError(f"--space {key}={text}: both ends are numbers; write {key}=0.1..1.0, or :log after it")
        try:
            return Range(low, high, log=match[3] is not None)
        except RecplugError as error:
            raise RecplugError(f"--space {key}: {error}") from None
    values = [literal(part) for part in text.split(",") if part.strip()]
    if len({repr(value) for value in values}) < max(2, len(values)):
        raise RecplugError(f"--space {key}={text} is no choice; write {key}=a,b, or fix one value with --fixed {key}=a")
    return values


def written(dimensions: Iterable[Dimension]) -> dict[str, str]:
    """As it stands in ``tune.yaml``, and as ``--space`` reads it again."""
    found = {}
    for each in dimensions:
        if isinstance(each.search, Range):
            found[each.key] = f"{each.search.low!r}..{each.search.high!r}{':log' if each.search.log else ''}"
        else:
            found[each.key] = ",".join(map(str, each.search))
    return found
