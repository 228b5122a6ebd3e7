"""The model card of a trained run."""

from pathlib import Path

from clip_common.runs import Run
from videoclip.config import Config
from videoclip.scoring.evaluation import Evaluation


def write_card(config: Config, run: Run, validation: Evaluation) -> Path:
    """Write the run's README.md, a model card."""
    metrics = validation.metrics
    interval = ""  # one subject has none
    if "macro_f1" in validation.intervals:
        interval = " (95 % interval over subjects {:.3f} to {:.3f})".format(*validation.intervals["macro_f1"])
    return run.write_model_card(
        title=f"{run.name}: video classification beside attention maps",
        summary=(
            f"{config.method} trained by videoclip on {Path(str(config.data.root)).name}, fold {config.data.fold}. "
            f"Validation macro F1 {metrics['macro_f1']:.3f}{interval}, "
            f"accuracy {metrics['accuracy']:.3f} over {validation.clips} clips of {validation.subjects} subjects; "
            f"always predicting the most frequent class: {metrics['majority_accuracy']:.3f}. The weights were selected "
            "on that split: score subjects that the run never saw with `videoclip test`."
        ),
        results={key: round(value, 4) for key, value in metrics.items()},
        usage=(
            "from videoclip import Classifier\n\n"
            f'prediction = Classifier.from_pretrained("{run.path.as_posix()}").predict("clip.mp4")\n'
            "print(prediction.label, prediction.probabilities)"
        ),
        sections={
            "Limits": (
                "Trained on few subjects of one data set. Not a medical device; a probability is not a diagnosis."
            )
        },
        tags=["video-classification", "attention"],
    )
