"""Search the parameters of a weighting by Optuna, on the validation split: trials that survive a kill."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clip_common.config import load_config
from clip_common.devices import check_one_device
from clip_common.loader import epoch_seed
from clip_common.reporting import Reporter, silent
from clip_common.runs.files import write_text
from clip_common.runs.series import Announce, split_options, train_member
from clip_common.training.guards import LossNotFiniteError
from clipse.config import Config, LossConfig, TuneConfig
from clipse.data import read_records
from clipse.losses import PRESETS, build_loss
from clipse.report.plots import draw_tuning
from clipse.series.members import check_same_captions, member_config, series_folder
from clipse.training.experiment import train

SPACES: dict[str, dict[str, tuple[float, float, bool]]] = {
    "sanw_debias": {"alpha": (0.0, 1.0, False), "delta": (0.0, 1.0, False), "lam": (0.5, 32.0, True)},
    "sanw_bandpass": {
        "alpha": (0.0, 1.0, False),
        "m1": (-0.2, 0.49, False),
        "m2": (0.5, 1.0, False),
        "gamma": (0.01, 1.0, True),
    },
}
"""By loss and parameter: lowest, highest, and whether it is drawn by its logarithm. m1 stays below m2."""


@dataclass(frozen=True)
class Trial:
    """One run with its parameters (fields of `LossConfig`) and the validation rsum of its best epoch."""

    number: int
    parameters: dict[str, float]
    rsum: float


@dataclass(frozen=True)
class Tuning:
    """What `tune` leaves.

    Attributes:
        folder: The study's folder; the runs are in `clipse/` in it.
        trials: All that ended well, in their order.
        overrides: The best parameters as overrides of `clipse train`.
        table, csv: The trials as Markdown, best first, and as CSV, in their order.
        plot: The PNG.
    """

    folder: Path
    trials: list[Trial]
    overrides: list[str]
    table: Path
    csv: Path
    plot: Path

    @property
    def best(self) -> Trial:
        """The trial with the highest rsum; of equal ones the first."""
        return max(self.trials, key=lambda trial: trial.rsum)


def resolve_tuning(*, config: str | None, overrides: Sequence[str]) -> tuple[Config, TuneConfig]:
    """The configuration of the runs, and what is searched: `loss=` and `trials=` among the overrides.

    Raises:
        ValueError: An unknown key or a wrong value.
    """
    options, rest = split_options(TuneConfig, overrides, own=("loss", "trials"))
    return load_config(Config, config=config, overrides=rest, package="clipse"), options


def tune(
    config: Config,
    *,
    loss: str,
    trials: int = 40,
    reporter: Reporter = silent,
    announce: Announce = lambda line: None,
) -> Tuning:
    """Search the parameters that `config.loss` leaves open, by Optuna's TPE, for the best validation rsum.

    The first trial is the `default` preset. Called again it goes on where it was, a killed trial included, up to
    `trials` in all: what is proposed next depends on the seed and the trials so far alone. A trial whose loss becomes
    NaN or infinite has failed: it counts, without a score. Validation decides, the test split is not scored. The best
    of many trials flatters itself: compare it on other seeds before believing it.

    Args:
        config: Of every run. Parameters set in `loss` are kept; `name` is the study's, default: loss, model, data.
        loss: `sanw_debias` or `sanw_bandpass`.
        trials: Runs in all.
        reporter: Shows progress of what is not training.
        announce: Told of each trial as it begins, and of one that failed.

    Raises:
        ValueError: One line: a loss without parameters to search, all of them set, no trial, several devices, a folder
            of that name with another configuration, other data than it began with or another process at work in it, no
            trial that ended well, and whatever `train` refuses.
        ImportError: Optuna is not installed.
    """
    if loss not in SPACES:
        raise ValueError(f"loss={loss}: there is nothing to tune; known: {', '.join(SPACES)}")
    if trials < 1:
        raise ValueError(f"trials={trials}: expected a whole number from 1")
    space = space_of(config.loss, loss)
    if not space:
        raise ValueError(f"loss={loss}: every parameter is set ({', '.join(SPACES[loss])}): leave one of them open")
    config = replace(config, loss=replace(config.loss, name=loss))
    build_loss(config.loss)
    check_one_device(config.trainer, verb="tune")
    optuna = _optuna()

    splits = read_records(config.data).splits
    name = config.name or f"{loss}-{config.model.label}-{Path(str(config.data.root)).name}"
    series = series_folder("tune", replace(config, name=name))
    with series.locked():
        check_same_captions(series, {name: splits[name] for name in ("train", "val")})
        storage = f"sqlite:///{series.path / 'study.db'}"
        study = optuna.create_study(study_name="tune", storage=storage, direction="maximize", load_if_exists=True)
        distributions = {
            name: optuna.distributions.FloatDistribution(low, high, log=log) for name, (low, high, log) in space.items()
        }
        state = optuna.trial.TrialState
        for half in study.get_trials(states=[state.RUNNING]):
            if half.params.keys() != space.keys():  # killed while it was drawn
                study.tell(half.number, state=state.FAIL)
        default = {name: PRESETS[loss]["default"][name] for name in space}
        # a kill may have come before the first trial was drawn
        if not any(found.params == default or found.state == state.WAITING for found in study.trials):
            study.enqueue_trial(default)
        ended = sum(found.state.is_finished() and found.params.keys() == space.keys() for found in study.trials)
        for done in range(ended, trials):
            killed = study.get_trials(states=[state.RUNNING])
            # a sampler that went on after a resume as it began would propose its first points again
            study.sampler = optuna.samplers.TPESampler(seed=epoch_seed(config.trainer.seed, done) % 2**32)
            trial: Any = killed[0] if killed else study.ask(distributions)
            parameters = rounded(trial.params)
            member = member_config(config, series, name=f"trial-{trial.number:03d}")
            announce(f"trial {done + 1} of {trials}: {' '.join(as_overrides(parameters))}")
            try:
                member = replace(member, loss=replace(config.loss, **parameters))
                run = train_member(series, member, train, reporter=reporter)
            except LossNotFiniteError as error:
                study.tell(trial.number, state=state.FAIL)
                announce(f"trial {done + 1} of {trials} failed: {error}")
            else:
                study.tell(trial.number, run.result["val"]["metrics"]["rsum"])

        finished = [
            Trial(number=trial.number, parameters=rounded(trial.params), rsum=float(trial.value))
            for trial in study.get_trials(states=[state.COMPLETE])
        ]
        if not finished:
            raise ValueError(
                f"{series.path}: the loss of every trial became NaN or infinite: lower optim.lr and give another name="
            )
        tuning = Tuning(
            folder=series.path,
            trials=finished,
            overrides=[f"loss.name={loss}", *as_overrides(max(finished, key=lambda trial: trial.rsum).parameters)],
            table=series.path / "trials.md",
            csv=series.path / "trials.csv",
            plot=series.path / "trials.png",
        )
        write(tuning)
        draw_tuning(
            tuning.plot,
            rsums=[trial.rsum for trial in finished],
            parameters={name: [trial.parameters[name] for trial in finished] for name in space},
            logarithmic=[name for name, (_, _, log) in space.items() if log],
        )
        series.write_result({"best": vars(tuning.best), "overrides": tuning.overrides, "trials": len(finished)})
        return tuning


def space_of(loss: LossConfig, name: str) -> dict[str, tuple[float, float, bool]]:
    """The parameters that a configuration leaves open, each with lowest, highest and whether by logarithm."""
    space = {key: bounds for key, bounds in SPACES[name].items() if getattr(loss, key) is None}
    if "m1" in space and loss.m2 is not None:
        space["m1"] = (min(space["m1"][0], loss.m2 - 0.5), min(space["m1"][1], loss.m2 - 0.01), False)
    if "m2" in space and loss.m1 is not None:
        space["m2"] = (max(space["m2"][0], loss.m1 + 0.01), max(space["m2"][1], loss.m1 + 0.5), False)
    return space


def rounded(drawn: Mapping[str, float]) -> dict[str, Any]:
    """Three significant digits: what is printed is what was trained."""
    return {name: float(f"{value:.3g}") for name, value in drawn.items()}


def as_overrides(parameters: Mapping[str, float]) -> list[str]:
    """Parameters as they are typed."""
    return [f"loss.{'lambda' if name == 'lam' else name}={value:g}" for name, value in parameters.items()]


def write(tuning: Tuning) -> None:
    """The trials as CSV and as Markdown."""
    names = list(tuning.trials[0].parameters)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *names, "rsum"])
    writer.writerows([trial.number, *trial.parameters.values(), trial.rsum] for trial in tuning.trials)
    write_text(tuning.csv, text.getvalue())
    ranked = sorted(tuning.trials, key=lambda trial: -trial.rsum)
    rows = [["trial", *names, "validation rsum"], ["---"] * (len(names) + 2)]
    rows += [[str(t.number), *(f"{value:g}" for value in t.parameters.values()), f"{t.rsum:.1f}"] for t in ranked]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    best = f"Best of {len(ranked)}, on the validation split: `{' '.join(tuning.overrides)}`"
    write_text(tuning.table, f"{best}\n\n{table}\n")


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ImportError("tune needs Optuna; install it with: pip install 'clipse[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
