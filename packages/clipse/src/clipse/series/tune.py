"""Search the parameters of a weighting with Optuna, on the validation split; a killed search resumes."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

from clip_common.config import load_config
from clip_common.devices import check_one_device
from clip_common.loader import epoch_seed
from clip_common.reporting import Reporter, silent
from clip_common.runs.files import write_text
from clip_common.runs.series import Announce, split_options, train_member
from clip_common.tables import csv_text, markdown_table
from clip_common.training.guards import LossNotFiniteError
from clipse.config import (
    Config,
    LossConfig,
    SearchRange,
    TuneConfig,
    find_weightings,
    list_parameter_keys,
    list_parameter_types,
    load_weighting,
)
from clipse.data import read_records
from clipse.report.plots import draw_tuning
from clipse.series.members import check_same_captions, member_config, open_series_folder
from clipse.training.experiment import train
from clipse.training.losses import build_loss


@dataclass(frozen=True)
class Trial:
    """One run: its parameters by field name, and the validation rsum of its best epoch."""

    number: int
    parameters: dict[str, float]
    rsum: float


def pick_best(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the highest rsum; of equal ones the first."""
    return max(trials, key=lambda trial: trial.rsum)


@dataclass(frozen=True)
class Tuning:
    """Result of `tune`.

    Attributes:
        folder: The study's folder, with the runs in `clipse/`.
        trials: All trials with a finite loss, in order.
        overrides: The best parameters as overrides of `clipse train`.
        table, csv: The trials as Markdown, best first, and as CSV, in order.
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
        return pick_best(self.trials)


def resolve_tuning(*, config: str | None, overrides: Sequence[str]) -> tuple[Config, TuneConfig]:
    """Return the configuration of the runs, and the options `loss=` and `trials=` among the overrides.

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
    """Search the parameters that `config.loss` leaves open, with Optuna's TPE sampler, for the best validation rsum.

    The first trial has the weighting's defaults. A repeated call resumes, up to `trials` trials in all, beginning with
    a killed trial: each proposal depends only on the seed and the trials so far. A trial whose loss becomes NaN or
    infinite has failed; it counts, without a score. The test split is not scored. The best score of many trials is too
    high: compare the parameters on other seeds before you rely on them.

    Args:
        config: Configuration of every run. Parameters that it sets are not searched. `name` names the study; default:
            loss, model and data.
        loss: `sanw_debias`, `sanw_bandpass`, or a registered weighting whose fields state search ranges.
        trials: Number of runs, including those of earlier calls.
        reporter: Shows progress of the work around training.
        announce: Called with one line as each trial begins, and as one fails.

    Raises:
        ValueError: One line: a loss without parameters to search, all of them set, no trial, several devices, a study
            of that name with another configuration, with changed data or in use by another process, no trial with a
            finite loss, or any error of `train`.
        ImportError: Optuna is not installed.
    """
    known = list_searchable_weightings()
    if loss not in known:
        raise ValueError(f"loss={loss}: there is nothing to tune; known: {', '.join(known)}")
    if trials < 1:
        raise ValueError(f"trials={trials}: expected a whole number from 1")
    ranges = list_search_ranges(config.loss, loss)
    if not ranges:
        names = ", ".join(list_search_ranges(LossConfig(), loss))
        raise ValueError(f"loss={loss}: every parameter is set ({names}): leave at least one out")
    config = replace(config, loss=replace(config.loss, name=loss))
    build_loss(config.loss)
    check_one_device(config.trainer, verb="tune")
    optuna = _optuna()

    splits = read_records(config.data, cache=config.cache_folder).splits
    name = config.name or f"{loss}-{config.model.label}-{Path(str(config.data.root)).name}"
    series = open_series_folder("tune", replace(config, name=name))
    with series.locked():
        check_same_captions(series, {name: splits[name] for name in ("train", "val")})
        storage = f"sqlite:///{series.path / 'study.db'}"
        study = optuna.create_study(study_name="tune", storage=storage, direction="maximize", load_if_exists=True)
        types = list_parameter_types()
        distributions = {name: _distribution(optuna, types[name][1], found) for name, found in ranges.items()}
        state = optuna.trial.TrialState
        for half in study.get_trials(states=[state.RUNNING]):
            if half.params.keys() != ranges.keys():  # killed while its parameters were drawn
                study.tell(half.number, state=state.FAIL)
        default = {name: value for name, value in list_defaults(loss).items() if name in ranges}
        # a kill may have come before the first trial was drawn
        if default.keys() == ranges.keys() and not any(
            found.params == default or found.state == state.WAITING for found in study.trials
        ):
            study.enqueue_trial(default)
        ended = sum(found.state.is_finished() and found.params.keys() == ranges.keys() for found in study.trials)
        for done in range(ended, trials):
            killed = study.get_trials(states=[state.RUNNING])
            # a new seed per trial: a sampler that restarts with the same seed would propose its first points again
            study.sampler = optuna.samplers.TPESampler(seed=epoch_seed(config.trainer.seed, done) % 2**32)
            trial: Any = killed[0] if killed else study.ask(distributions)
            parameters = round_parameters(trial.params)
            member = member_config(config, series, name=f"trial-{trial.number:03d}")
            announce(f"trial {done + 1} of {trials}: {' '.join(to_overrides(loss, parameters))}")
            try:
                member = replace(member, loss=replace(config.loss, parameters=config.loss.parameters | parameters))
                run = train_member(series, member, train, reporter=reporter)
            except LossNotFiniteError as error:
                study.tell(trial.number, state=state.FAIL)
                announce(f"trial {done + 1} of {trials} failed: {error}")
            else:
                study.tell(trial.number, run.result["val"]["metrics"]["rsum"])

        finished = [
            Trial(number=trial.number, parameters=round_parameters(trial.params), rsum=float(trial.value))
            for trial in study.get_trials(states=[state.COMPLETE])
        ]
        if not finished:
            raise ValueError(
                f"{series.path}: the loss of every trial became NaN or infinite: lower optim.lr and give another name="
            )
        tuning = Tuning(
            folder=series.path,
            trials=finished,
            overrides=[f"loss.name={loss}", *to_overrides(loss, pick_best(finished).parameters)],
            table=series.path / "trials.md",
            csv=series.path / "trials.csv",
            plot=series.path / "trials.png",
        )
        write_trials(tuning)
        keys = list_parameter_keys(load_weighting(loss))
        draw_tuning(
            tuning.plot,
            rsums=[trial.rsum for trial in finished],
            parameters={keys[name]: [trial.parameters[name] for trial in finished] for name in ranges},
            logarithmic=[keys[name] for name, found in ranges.items() if found.log],
        )
        series.write_result({"best": vars(tuning.best), "overrides": tuning.overrides, "trials": len(finished)})
        return tuning


def list_search_ranges(config: LossConfig, name: str) -> dict[str, SearchRange]:
    """Return the parameters of a weighting that a configuration leaves open, by field name, with their ranges."""
    weighting = load_weighting(name)
    ranges = {
        field.name: field.metadata["search"]
        for field in (fields(weighting) if is_dataclass(weighting) else ())
        if "search" in field.metadata and field.name not in config.parameters
    }
    return weighting.narrow_search(ranges, config.parameters) if hasattr(weighting, "narrow_search") else ranges


def list_searchable_weightings() -> list[str]:
    """Return the registered weightings that state a search range."""
    return [name for name in find_weightings() if list_search_ranges(LossConfig(), name)]


def list_defaults(name: str) -> dict[str, Any]:
    """Return the defaults of a weighting's parameters."""
    return {field.name: field.default for field in fields(load_weighting(name)) if field.default is not MISSING}


def round_parameters(drawn: Mapping[str, float]) -> dict[str, Any]:
    """Round to three significant digits, so that the printed values are those that were trained with."""
    return {name: value if isinstance(value, int) else float(f"{value:.3g}") for name, value in drawn.items()}


def to_overrides(name: str, parameters: Mapping[str, float]) -> list[str]:
    """Return parameters of a weighting as a user types them."""
    keys = list_parameter_keys(load_weighting(name))
    return [f"loss.{keys[parameter]}={value:g}" for parameter, value in parameters.items()]


def write_trials(tuning: Tuning) -> None:
    """Write the trials as CSV and as Markdown."""
    names = list(tuning.trials[0].parameters)
    rows = ([trial.number, *trial.parameters.values(), trial.rsum] for trial in tuning.trials)
    write_text(tuning.csv, csv_text(["trial", *names, "rsum"], rows))
    ranked = sorted(tuning.trials, key=lambda trial: -trial.rsum)
    table = markdown_table(
        ["trial", *names, "validation rsum"],
        [[str(t.number), *(f"{value:g}" for value in t.parameters.values()), f"{t.rsum:.1f}"] for t in ranked],
    )
    best = f"Best of {len(ranked)}, on the validation split: `{' '.join(tuning.overrides)}`"
    write_text(tuning.table, f"{best}\n\n{table}\n")


def _distribution(optuna: Any, hint: Any, found: SearchRange) -> Any:
    """Return Optuna's distribution for a range: of whole numbers for a parameter of type int."""
    if float not in get_args(hint):
        return optuna.distributions.IntDistribution(int(found.low), int(found.high), log=found.log)
    return optuna.distributions.FloatDistribution(found.low, found.high, log=found.log)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ImportError("tune needs Optuna; install it with: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
