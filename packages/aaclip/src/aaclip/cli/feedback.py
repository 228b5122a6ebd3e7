"""`aaclip feedback`: loops of both stages."""

from aaclip.released import flags
from aaclip.released import fork_flags as fork
from clip_common import cli
from clip_common.cli import ConfigName, Overrides, Resume


def feedback(
    overrides: Overrides = None,
    config: ConfigName = None,
    resume: Resume = None,
    dataset: flags.Dataset = None,
    shot: flags.Shot = None,
    training_mode: flags.TrainingMode = None,
    text_batch_size: flags.TextBatchSize = None,
    image_batch_size: flags.ImageBatchSize = None,
    text_lr: flags.TextLr = None,
    image_lr: flags.ImageLr = None,
    text_adapt_until: flags.TextAdaptUntil = None,
    image_adapt_until: flags.ImageAdaptUntil = None,
    text_adapt_weight: flags.TextAdaptWeight = None,
    image_adapt_weight: flags.ImageAdaptWeight = None,
    text_norm_weight: flags.TextNormWeight = None,
    relu: flags.Relu = None,
    surgery_until_layer: flags.SurgeryUntilLayer = None,
    model_name: flags.ModelName = None,
    img_size: flags.ImgSize = None,
    seed: flags.Seed = None,
    criterion: flags.Criterion = None,
    mode: fork.Mode = None,
    num_feedback_loops: fork.NumFeedbackLoops = None,
    loop1_text_epoch: fork.Loop1TextEpoch = None,
    loop2_text_epoch: fork.Loop2TextEpoch = None,
    loop3_text_epoch: fork.Loop3TextEpoch = None,
    loop1_image_epoch: fork.Loop1ImageEpoch = None,
    loop2_image_epoch: fork.Loop2ImageEpoch = None,
    loop3_image_epoch: fork.Loop3ImageEpoch = None,
    text_epochs_per_loop: fork.TextEpochsPerLoop = None,
    image_epochs_per_loop: fork.ImageEpochsPerLoop = None,
    epochs_decay_rate: fork.EpochsDecayRate = None,
    lr_decay_per_loop: fork.LrDecayPerLoop = None,
    warmup_epochs: fork.WarmupEpochs = None,
    cross_attn_start_loop: fork.CrossAttnStartLoop = None,
    cross_attn_heads: fork.CrossAttnHeads = None,
    cross_attn_dropout: fork.CrossAttnDropout = None,
    plateau_threshold: fork.PlateauThreshold = None,
    plateau_patience: fork.PlateauPatience = None,
    grad_clip: fork.GradClip = None,
    load_base_text_adapter: fork.LoadBaseTextAdapter = None,
    load_base_image_adapter: fork.LoadBaseImageAdapter = None,
) -> None:
    """Train both stages with cross-attention in several loops; stage 1 of a loop reads what the loop before trained.

    Every loop is scored on images that no loop learns from, and training ends when they gain no more. The folder keeps
    a file of each loop; `aaclip compare RUN` compares them. The flags of the fork that this comes from, and those of
    the released code, set the fields in their descriptions; section.field=value wins over them.

    Examples:

        aaclip feedback --config tiny data.root=parts/ feedback.loops=3

        aaclip feedback data.root=mvtec/ start=runs/aaclip/base feedback.freeze=adapters

        aaclip feedback --config feedback_v2 data.root=mvtec/ name=v2

        aaclip feedback --resume runs/aaclip/v2

        aaclip feedback --config official --dataset mvtec/ --mode variant_b --num_feedback_loops 10 start=detectors/base
    """
    from aaclip.training import feedback as loops

    given = flags.make_overrides(
        dataset=dataset,
        shot=shot,
        training_mode=training_mode,
        text_batch_size=text_batch_size,
        image_batch_size=image_batch_size,
        text_lr=text_lr,
        image_lr=image_lr,
        text_adapt_until=text_adapt_until,
        image_adapt_until=image_adapt_until,
        text_adapt_weight=text_adapt_weight,
        image_adapt_weight=image_adapt_weight,
        text_norm_weight=text_norm_weight,
        relu=relu,
        surgery_until_layer=surgery_until_layer,
        model_name=model_name,
        img_size=img_size,
        seed=seed,
        criterion=criterion,
    )
    given += fork.make_fork_overrides(
        mode=mode,
        num_feedback_loops=num_feedback_loops,
        loop1_text_epoch=loop1_text_epoch,
        loop2_text_epoch=loop2_text_epoch,
        loop3_text_epoch=loop3_text_epoch,
        loop1_image_epoch=loop1_image_epoch,
        loop2_image_epoch=loop2_image_epoch,
        loop3_image_epoch=loop3_image_epoch,
        text_epochs_per_loop=text_epochs_per_loop,
        image_epochs_per_loop=image_epochs_per_loop,
        epochs_decay_rate=epochs_decay_rate,
        lr_decay_per_loop=lr_decay_per_loop,
        warmup_epochs=warmup_epochs,
        cross_attn_start_loop=cross_attn_start_loop,
        cross_attn_heads=cross_attn_heads,
        cross_attn_dropout=cross_attn_dropout,
        plateau_threshold=plateau_threshold,
        plateau_patience=plateau_patience,
        grad_clip=grad_clip,
        load_base_text_adapter=load_base_text_adapter,
        load_base_image_adapter=load_base_image_adapter,
    )
    settings = loops.resolve(config=config, overrides=[*given, *(overrides or [])], resume=resume)
    looped = loops.feedback(settings, resume=resume, reporter=cli.progress)
    heading, *rows = loops.format_loops(looped.loops)
    title = f"held-out images: {looped.held_out:,}" if looped.held_out else "no images held out"
    cli.print_table(heading, rows, title=title)
    cli.print_notes(looped.notes)
    cli.print_files("run", [looped.run.path])
    cli.print_files("plot", looped.plots)
    if len(looped.loops) > 1 and looped.held_out:
        cli.console.print(f"\nCompare its loops:  aaclip compare {looped.run.path}", soft_wrap=True)
