"""The table of dependencies: which settings change nothing unless another one is set.

A new field that only counts under a condition gets a row in `DEPENDENCIES`; the rest follows, and
`test_config_switches.py` asks for an example.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from clip_common.config import ConfigError

if TYPE_CHECKING:
    from videoclip.config import Config


@dataclass(frozen=True)
class ClipFacts:
    """What the settings of a training run may depend on in its data set.

    Attributes:
        cut: Whether videos are cut into clips, as in the folder format; a manifest gives start and end.
        parts: Number of parts of a cross-validation, if the set assigns them itself.
        maps: Whether a clip has a map, after `data.maps` and `data.control`.
        drawn: Whether one of these maps is drawn from keypoints.
        regions: Whether doctors named regions.
    """

    cut: bool
    parts: int | None
    maps: bool
    drawn: bool
    regions: bool


@dataclass(frozen=True)
class Dependency:
    """A setting that changes nothing in training unless a condition holds.

    Attributes:
        key: The setting, as in `section.field=value`.
        needs: The condition, in the words of a user who could set it.
        met: Whether a configuration meets it.
        met_by: Whether a configuration and its data set meet it.
    """

    key: str
    needs: str
    met: Callable[["Config"], Any] = lambda config: True
    met_by: Callable[["Config", ClipFacts], bool] = lambda config, facts: True


@dataclass(frozen=True)
class IdleSwitch:
    """A setting that differs from its default and changes nothing.

    Attributes:
        key: The setting.
        value: Its value.
        needs: What it needs.
    """

    key: str
    value: Any
    needs: str

    @property
    def reason(self) -> str:
        """Why it changes nothing."""
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.key}={value} changes nothing: it needs {self.needs}"

    def __str__(self) -> str:
        return f"{self.reason}: set that too, or leave {self.key} out"


def _reads_guided(config: "Config") -> bool:
    """Return whether the loss depends on how the video's tokens were guided."""
    model = config.model
    aligns, teaches = config.loss.clip_weight, model.lambda_token
    return bool(
        model.clip_classifier_source != "attn"
        or (aligns and model.align_tokens == "gated")
        or (teaches and model.token_source == "gated")
    )


def _reads_maps(config: "Config") -> bool:
    """Return whether anything reads the maps in training."""
    model = config.model
    guides = model.map_guided and _reads_guided(config)
    return bool(
        guides
        or config.loss.clip_weight
        or config.loss.teacher
        or model.lambda_token
        or model.clip_classifier_source != "video"
    )


def _gates_by_mean(config: "Config") -> bool:
    """Return whether an MLP reads the map's mean, in a model whose map guides."""
    return config.model.map_guided_type == "channel" or config.model.clip_backbone != "3dcnn"


_GUIDED = "model.map_guided=true"
_TOKENS = "model.lambda_token above 0"
_CONTRAST = "loss.clip_weight above 0"
_PREDICTS = "model.guide=predicted or mixed"
_3DCNN = "model.clip_backbone=3dcnn"
_MAPPED = "clips with maps"
_READER = f"a reader of maps ({_GUIDED}, {_CONTRAST}, {_TOKENS}, or model.clip_classifier_source=attn or fusion)"


def _on(keys: str, needs: str, met: Callable[["Config"], Any]) -> tuple[Dependency, ...]:
    """Return one row per key, for keys of one condition."""
    return tuple(Dependency(key, needs, met) for key in keys.split())


DEPENDENCIES: tuple[Dependency, ...] = (
    *_on(
        "model.map_guided",
        "a reader of the guided video (model.clip_classifier_source=video or fusion, model.align_tokens=gated, or "
        "model.token_source=gated)",
        _reads_guided,
    ),
    *_on(
        "model.map_guided_type model.map_guided_sigmoid_gate model.map_guided_hidden_dim model.gate_channels "
        "model.map_dropout",
        _GUIDED,
        lambda config: config.model.map_guided,
    ),
    *_on(
        "model.map_guided_type model.map_guided_sigmoid_gate model.gate_channels",
        _3DCNN,
        lambda config: config.model.clip_backbone == "3dcnn",
    ),
    *_on(
        "model.map_guided_sigmoid_gate",
        "model.map_guided_type=spatiotemporal",
        lambda config: config.model.map_guided_type == "spatiotemporal",
    ),
    *_on(
        "model.map_guided_hidden_dim",
        "model.map_guided_type=channel, or a backbone other than 3dcnn",
        _gates_by_mean,
    ),
    *_on(
        "model.gate_channels",
        "model.map_guided_type=spatiotemporal or weighted_pool",
        lambda config: config.model.map_guided_type != "channel",
    ),
    *_on("model.gate_channels", "model.attn_in_channels above 1", lambda config: config.model.attn_in_channels > 1),
    *_on("model.lambda_guide model.guide_loss", _PREDICTS, lambda config: config.model.guide != "map"),
    *_on("model.guide_loss", "model.lambda_guide above 0", lambda config: config.model.lambda_guide),
    *_on("model.token_loss model.token_source", _TOKENS, lambda config: config.model.lambda_token),
    *_on(
        "model.token_source",
        f"a gate on the tokens ({_GUIDED} and model.map_guided_type=spatiotemporal or channel)",
        lambda config: config.model.map_guided and config.model.map_guided_type != "weighted_pool",
    ),
    *_on(
        "loss.exclude loss.positive loss.temperature model.align_tokens model.align_pool",
        _CONTRAST,
        lambda config: config.loss.clip_weight,
    ),
    *_on(
        "model.class_pool",
        "model.clip_backbone=3dcnn or 2dcnn",
        lambda config: config.model.clip_backbone in ("3dcnn", "2dcnn"),
    ),
    *_on(
        "model.class_pool",
        "model.clip_classifier_source=video or fusion",
        lambda config: config.model.clip_classifier_source != "attn",
    ),
    *_on(
        "loss.exclude",
        "data.batches=shuffled, because no other batch has two clips of a subject",
        lambda config: config.data.batches == "shuffled",
    ),
    *_on(
        "loss.positive",
        "data.control=none, shuffled or hidden, because no other control has regions",
        lambda config: config.data.control in ("none", "shuffled", "hidden"),
    ),
    *_on(
        "model.align_tokens",
        f"guidance ({_GUIDED}), because without it no token is gated",
        lambda config: config.model.map_guided,
    ),
    *_on(
        "model.map_dropout",
        "model.guide=map or mixed, because a predicted map is never hidden",
        lambda config: config.model.guide != "predicted",
    ),
    *_on("model.map_dropout_warmup", "model.map_dropout above 0", lambda config: config.model.map_dropout),
    *_on("loss.distill_weight", "loss.teacher=RUN", lambda config: config.loss.teacher),
    *_on("data.control data.map_noise data.map_scale data.region_joints", _READER, _reads_maps),
    *_on(
        "data.map_noise data.map_scale",
        "data.control other than absent",
        lambda config: config.data.control != "absent",
    ),
    *_on(
        "data.map_scale",
        f"a reader of the map's scale ({_CONTRAST}, model.clip_classifier_source=attn or fusion, or a gate by the "
        "map's mean), because pooling and the token loss scale each map to 0 to 1",
        lambda config: (
            config.loss.clip_weight
            or config.model.clip_classifier_source != "video"
            or (config.model.map_guided and _gates_by_mean(config))
        ),
    ),
    *_on(
        "data.region_joints",
        "maps drawn from keypoints (data.maps other than file, data.control=none or shuffled)",
        lambda config: config.data.maps != "file" and config.data.control in ("none", "shuffled"),
    ),
    *_on("data.cache_dir", "data.cache=true", lambda config: config.data.cache),
    *_on("split", "`videoclip test`, because training fits on train and selects on val", lambda config: False),
    Dependency(
        "data.clip_seconds", "videos to cut; the manifest gives start and end", met_by=lambda config, facts: facts.cut
    ),
    Dependency(
        "data.folds",
        "a set without a fold column, or with one of so many parts",
        met_by=lambda config, facts: facts.parts in (None, config.data.folds),
    ),
    Dependency(
        "data.region_joints",
        "clips whose maps are drawn from keypoints (data.maps=doctor1, doctor2 or both)",
        met_by=lambda config, facts: facts.drawn,
    ),
    Dependency("loss.positive", "clips with regions", met_by=lambda config, facts: facts.regions),
    *(
        Dependency(key, _MAPPED, met_by=lambda config, facts: facts.maps)
        for key in (
            "data.maps",
            "data.map_noise",
            "data.map_scale",
            "model.map_guided",
            "model.lambda_token",
        )
    ),
)
"""Every setting that needs another one; a setting with several rows needs all of them."""


def find_idle(config: "Config", facts: ClipFacts | None = None) -> list[IdleSwitch]:
    """Return the settings that differ from their defaults but change nothing, in the order of the table.

    Args:
        config: The configuration of a training run.
        facts: Of its data set; None leaves out the rows about data.
    """
    given = dict(_walk_fields(config))
    defaults = dict(_walk_fields(type(config)()))
    return [
        IdleSwitch(row.key, given[row.key], row.needs)
        for row in DEPENDENCIES
        if given[row.key] != defaults[row.key]
        and not (row.met(config) and (facts is None or row.met_by(config, facts)))
    ]


def check_switches(configs: Sequence["Config"], facts: ClipFacts | None = None) -> None:
    """Raise ConfigError if a setting that differs from its default changes nothing in any of some training runs.

    Args:
        configs: The configurations of the runs; several for a table whose rows each leave something out.
        facts: See `find_idle`.
    """
    of_run = [find_idle(config, facts) for config in configs]
    for key in dict.fromkeys(idle.key for idle in of_run[0]):
        reasons = [[idle for idle in found if idle.key == key] for found in of_run]
        if all(reasons):
            raise ConfigError(str(min(reasons, key=len)[0]))  # of the run that lacks least


def _walk_fields(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of a configuration and its value."""
    for field in fields(section):
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from _walk_fields(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value
