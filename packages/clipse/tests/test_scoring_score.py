"""Scoring a run: the same numbers as in training, and a second model on the same images."""

import json
from pathlib import Path

import pytest
from helpers.runs import rows
from toy_runs import configured

from clipse import Retriever, read_records, score, score_records, train
from clipse.released.results import write_registry


def test_the_saved_model_scores_what_the_run_says(small, tmp_path):
    trained = train(configured(small, "name=saved"))
    records = read_records(trained_config := configured(small).data).splits
    again = score_records(Retriever.from_pretrained(trained.run.path).model, records["val"])
    assert again.result.metrics == trained.validation.result.metrics
    assert trained_config.root is not None

    scored = score(str(trained.run.path))
    assert scored.config.split == "test"
    assert scored.evaluation.ceiling["rsum"] > scored.evaluation.result.metrics["rsum"]
    assert write_registry(scored) == tmp_path / "results" / "run_registry.csv"
    assert rows(tmp_path / "results" / "run_registry.csv")[0]["run"] == "saved"
    assert json.loads((trained.run.path / "result.json").read_text())["test"]["images"] == 16
    assert all(file.exists() for file in scored.written)


def test_eval_against_another_model_says_what_differs(small, trained, clipse):
    run, other = (str(one) for one in (trained(), trained("trainer.seed=1")))
    code, out, _ = clipse("eval", run, "--against", other)
    assert code == 0
    first, second = (float(part.split()[0]) for part in out.split("rsum ")[1:3])
    minus = float(out.split(f"minus {Path(other).name}: ")[1].split()[0])
    assert minus == pytest.approx(first - second, abs=0.11)
    same_twice = clipse("eval", run, "--against", run)[1]
    assert "+0.0 (+0.0 to +0.0, paired by image)" in same_twice


def test_a_wrong_name_to_compare_with_is_told_before_anything_is_scored(trained, clipse):
    run = trained()
    before = (run / "result.json").read_bytes()
    for name, said in (("nosuchmodel", "unknown model"), ("ViT-B-32:nosuchtag", "has no weights 'nosuchtag'")):
        code, out, error = clipse("eval", run, "--against", name)
        assert (code, out) == (2, "")
        assert said in error
    assert (run / "result.json").read_bytes() == before
