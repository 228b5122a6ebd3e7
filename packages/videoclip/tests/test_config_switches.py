"""Settings that change nothing are refused in one line, nothing else is; keys of the original project are explained."""

from dataclasses import replace
from zlib import crc32

import pytest
import torch
from helpers.commands import refused, succeeded

from clip_common.config import ConfigError, load_config
from videoclip import Config, VideoAttentionCLIP
from videoclip.config.switches import DEPENDENCIES, ClipFacts, check_switches, find_idle
from videoclip.config.upstream import UPSTREAM
from videoclip.data.clip_set import describe_clips
from videoclip.data.manifest import read_manifest
from videoclip.series.ablation import ROWS, check_rows
from videoclip.training.losses import VideoClipLoss

FULL = ClipFacts(cut=True, parts=None, maps=True, drawn=True, regions=True)
GUIDED = "model.map_guided=true"
CHANNEL = f"{GUIDED} model.map_guided_type=channel"
PLAIN = "loss.clip_weight=0"
TOKENS = "model.lambda_token=0.1"
SIGMOID = "model.map_guided_sigmoid_gate=true"
EACH = "model.gate_channels=each"
READS = "a reader of maps (model.map_guided=true, loss.clip_weight above 0, model.lambda_token above 0, or "
EXAMPLES = [
    # setting, what it needs, overrides that lack it, overrides or facts that have it
    (GUIDED, "a reader of the guided video", f"{PLAIN} model.clip_classifier_source=attn", PLAIN),
    ("model.map_guided_type=channel", GUIDED, "", GUIDED),
    (SIGMOID, GUIDED, "", GUIDED),
    ("model.map_guided_hidden_dim=8", GUIDED, "", CHANNEL),
    (EACH, GUIDED, "model.attn_in_channels=2", f"model.attn_in_channels=2 {GUIDED}"),
    ("model.map_dropout=0.5", GUIDED, "", GUIDED),
    ("model.map_guided_type=channel", "clip_backbone=3dcnn", f"{GUIDED} model.clip_backbone=2dcnn", GUIDED),
    (SIGMOID, "clip_backbone=3dcnn", f"{GUIDED} model.clip_backbone=cnn_lstm", GUIDED),
    (EACH, "clip_backbone=3dcnn", f"{GUIDED} model.attn_in_channels=2 model.clip_backbone=2dcnn", None),
    (SIGMOID, "model.map_guided_type=spatiotemporal", CHANNEL, GUIDED),
    ("model.map_guided_hidden_dim=8", "=channel, or a backbone", GUIDED, f"{GUIDED} model.clip_backbone=2dcnn"),
    (EACH, "=spatiotemporal or weighted_pool", f"{CHANNEL} model.attn_in_channels=2", None),
    (EACH, "attn_in_channels above 1", GUIDED, f"{GUIDED} model.attn_in_channels=2"),
    ("model.lambda_guide=2", "guide=predicted or mixed", GUIDED, f"{GUIDED} model.guide=mixed"),
    ("model.guide_loss=mse", "guide=predicted or mixed", GUIDED, f"{GUIDED} model.guide=mixed"),
    ("model.guide_loss=mse", "lambda_guide above 0", f"{GUIDED} model.guide=mixed model.lambda_guide=0", None),
    ("model.token_loss=kl", "lambda_token above 0", "", TOKENS),
    ("model.token_source=gated", "lambda_token above 0", GUIDED, f"{GUIDED} {TOKENS}"),
    (
        "model.token_source=gated",
        "a gate on the tokens",
        f"{GUIDED} {TOKENS} model.map_guided_type=weighted_pool",
        None,
    ),
    ("loss.exclude=none", "clip_weight above 0", PLAIN, ""),
    ("loss.positive=regions", "clip_weight above 0", PLAIN, ""),
    ("loss.temperature=0.1", "clip_weight above 0", PLAIN, ""),
    ("model.align_tokens=gated", "clip_weight above 0", f"{PLAIN} {GUIDED} model.align_pool=mean", None),
    ("model.align_pool=mean", "clip_weight above 0", PLAIN, ""),
    ("model.class_pool=grid", "3dcnn or 2dcnn", "model.clip_backbone=cnn_lstm", "model.clip_backbone=2dcnn"),
    ("model.class_pool=grid", "=video or fusion", "model.clip_classifier_source=attn", ""),
    ("loss.exclude=none", "data.batches=shuffled", "data.batches=subject_unique", ""),
    ("loss.positive=regions", "data.control=none, shuffled or hidden", "data.control=centre", "data.control=shuffled"),
    ("model.align_tokens=gated", "guidance", "model.align_pool=mean", f"model.align_pool=mean {GUIDED}"),
    (
        "model.map_dropout=0.5",
        "a predicted map is never",
        f"{GUIDED} model.guide=predicted",
        f"{GUIDED} model.guide=mixed",
    ),
    ("model.map_dropout_warmup=0.5", "map_dropout above 0", GUIDED, f"{GUIDED} model.map_dropout=0.5"),
    ("loss.distill_weight=2", "loss.teacher=RUN", "", "loss.teacher=there"),
    ("data.control=shuffled", READS, PLAIN, f"{PLAIN} {GUIDED}"),
    ("data.map_noise=0.2", READS, PLAIN, f"{PLAIN} {TOKENS}"),
    ("data.map_scale=0.5", READS, PLAIN, f"{PLAIN} model.clip_classifier_source=fusion"),
    ("data.region_joints=mean", READS, PLAIN, f"{PLAIN} {TOKENS}"),
    ("data.map_noise=0.2", "data.control other than absent", "data.control=absent", ""),
    ("data.map_scale=0.5", "data.control other than absent", "data.control=absent", ""),
    ("data.map_scale=0.5", "a reader of the map's scale", f"{PLAIN} {GUIDED} {TOKENS}", f"{PLAIN} {CHANNEL}"),
    ("data.region_joints=mean", "maps drawn from keypoints", "data.maps=file", "data.maps=doctor1"),
    ("data.cache_dir=there", "data.cache=true", "data.cache=false", ""),
    ("split=val", "`videoclip test`", "", None),
    ("data.clip_seconds=2", "videos to cut", replace(FULL, cut=False), FULL),
    ("data.folds=4", "a set without a fold column", replace(FULL, parts=5), replace(FULL, parts=4)),
    ("data.region_joints=mean", "clips whose maps are drawn", replace(FULL, drawn=False), FULL),
    ("loss.positive=regions", "clips with regions", replace(FULL, regions=False), FULL),
    ("data.maps=doctor1", "clips with maps", replace(FULL, maps=False), FULL),
    ("data.map_noise=0.1", "clips with maps", replace(FULL, maps=False), FULL),
    ("data.map_scale=0.1", "clips with maps", replace(FULL, maps=False), FULL),
    (GUIDED, "clips with maps", replace(FULL, maps=False), FULL),
    (TOKENS, "clips with maps", replace(FULL, maps=False), FULL),
]
"""A row of the table each, in its order."""


def configured(*overrides: str) -> Config:
    return load_config(Config, overrides=[part for text in overrides for part in text.split()])


@pytest.mark.parametrize(("row", "example"), list(zip(DEPENDENCIES, EXAMPLES, strict=True)))
def test_each_row_of_the_table(row, example):
    setting, needs, without, met = example
    assert setting.startswith(f"{row.key}=")
    assert needs in row.needs
    facts = without if isinstance(without, ClipFacts) else FULL
    config = configured(setting if facts is without else f"{setting} {without}")
    assert row.needs in [idle.needs for idle in find_idle(config, facts)]
    with pytest.raises(ConfigError, match=f"^{row.key}=.* changes nothing: it needs ") as raised:
        check_switches([config], facts)
    assert "\n" not in str(raised.value)
    if facts is without:
        assert find_idle(config) == []  # not known before the data set is read
    if met is not None:
        facts = met if isinstance(met, ClipFacts) else FULL
        assert find_idle(configured(setting if facts is met else f"{setting} {met}"), facts) == []


BATCH = {
    "map_BCTHW": torch.rand(4, 2, 4, 16, 16, generator=torch.Generator().manual_seed(1)),
    "label_B": torch.tensor([0, 1, 2, 0]),
    "subject_B": torch.tensor([0, 0, 1, 2]),
    "regions_B": torch.tensor([0, 1, 0, 2]),
}


def loss_of(config: Config) -> float:
    """Return the loss of a batch, with weights that depend on their names alone."""
    model = VideoAttentionCLIP(config.model, temperature=config.loss.temperature).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            drawn = torch.Generator().manual_seed(crc32(name.encode()))
            parameter.data = torch.randn(parameter.shape, generator=drawn) / parameter[0].numel() ** 0.5
        elif "bias" in name:
            parameter.data.zero_()
    video = torch.rand(4, 3, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    output = model(video, BATCH["map_BCTHW"], align=config.loss.clip_weight > 0)
    loss = VideoClipLoss(config.loss, token_config=config.model)
    return float(loss(output, **BATCH, scale=model.logit_scale()).total.detach())


SEEN = [
    example
    for example in EXAMPLES
    if example[0].startswith(("model.", "loss."))
    and isinstance(example[2], str)
    and not example[0].startswith(("model.map_dropout", "model.map_guided_hidden_dim", "loss.distill_weight"))
    and "attn_in_channels" not in example[1]
    and "data." not in example[2]
]


@pytest.mark.parametrize(("setting", "needs", "without", "met"), SEEN)
def test_without_its_condition_a_switch_indeed_changes_no_loss(setting, needs, without, met):
    two = "model.attn_in_channels=2 model.clip_feature_dim=8"
    assert loss_of(configured(two, without, setting)) == loss_of(configured(two, without))
    if met is not None:
        assert loss_of(configured(two, met, setting)) != loss_of(configured(two, met))


def test_defaults_the_named_configuration_and_the_table_have_no_idle_switch():
    assert find_idle(Config(), FULL) == []
    walking = load_config(Config, config="walking", package="videoclip")
    assert find_idle(walking, FULL) == []
    check_rows(ROWS, walking, FULL, table="all")


def test_a_setting_that_counts_in_one_row_is_kept():
    config = configured(f"loss.temperature=0.1 {TOKENS} model.token_loss=kl model.map_guided_hidden_dim=8")
    check_rows(ROWS, config, FULL, table="all")
    controls = [row for row in ROWS if row.id in ("B0", "B3")]
    check_rows(controls, config, FULL, table="controls")  # B4 and C1 of another table read them


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model.clip_backbone=2dcnn", "row C1 of the table C: model.map_guided_type=channel changes nothing: it needs"),
        (f"{EACH}", "model.gate_channels=each changes nothing: it needs model.attn_in_channels above 1"),
        ("split=val", "split=val changes nothing"),
    ],
)
def test_ablate_refuses_what_no_row_reads_and_rows_that_are_equal(overrides, message):
    rows = [row for row in ROWS if row.id in ("B0", "C1", "C2", "C3 sigmoid")]
    with pytest.raises(ValueError, match=message):
        check_rows(rows, configured(overrides), FULL, table="C")


def test_what_a_set_offers(walks):
    config = configured(f"data.root={walks}")
    records = read_manifest(walks / "manifest.csv")
    assert describe_clips(records, config) == ClipFacts(cut=False, parts=5, maps=True, drawn=False, regions=True)
    assert describe_clips(records, configured(f"data.root={walks} data.maps=doctor1")).drawn
    bare = [replace(one, map=None, fold=None, regions_doctor1=(), regions_doctor2=()) for one in records]
    assert describe_clips(bare, config) == ClipFacts(cut=False, parts=None, maps=False, drawn=False, regions=False)
    assert describe_clips(bare, configured(f"data.root={walks} data.control=random")).maps


def test_train_cv_and_ablate_refuse_in_one_line_before_anything_is_decoded(videoclip, walks, tmp_path):
    place = [f"data.root={walks}", f"data.cache_dir={tmp_path / 'cache'}", f"runs={tmp_path / 'runs'}"]
    for verb in ("train", "cv"):
        refused(videoclip(verb, *place, SIGMOID), f"{SIGMOID} changes nothing: it needs {GUIDED}")
        refused(
            videoclip(verb, *place, "data.clip_seconds=2"), "data.clip_seconds=2.0 changes nothing: it needs videos"
        )
    refused(videoclip("ablate", *place, "data.folds=4"), "data.folds=4 changes nothing: it needs a set without a fold")
    refused(videoclip("ablate", *place, "model.clip_backbone=2dcnn", "--table", "C"), "row C1 of the table C")
    assert list(tmp_path.iterdir()) == []


def test_a_run_from_before_the_table_can_be_tested_and_resumed(videoclip, trained, tmp_path):
    """Its configuration may hold a setting that is refused today."""
    import shutil

    run = shutil.copytree(trained(), tmp_path / "runs" / "videoclip" / "old")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("map_guided_type: spatiotemporal", "map_guided_type: channel"))
    succeeded(videoclip("test", run))
    succeeded(videoclip("train", "--resume", run))


@pytest.mark.parametrize("key", UPSTREAM)
def test_keys_of_the_original_project_are_explained(key):
    keys = [key] if "." in key or key == "log_path" else [f"{key}.anything"]
    for text in keys:
        with pytest.raises(ConfigError) as raised:
            load_config(Config, overrides=[f"{text}=1"])
        assert str(raised.value) == f"{text}: unknown key; {UPSTREAM[key]}"
        assert "\n" not in str(raised.value)
    for part in UPSTREAM[key].replace("=", " ").replace(",", " ").split():
        section, dot, name = part.strip(";:.…").partition(".")
        if dot and section in ("model", "data", "loss", "trainer", "optim"):
            assert hasattr(getattr(Config(), section), name), part
