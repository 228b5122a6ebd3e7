"""Numbers in the tables that clipse prints."""

import torch

from clipse.cli.main import print_evaluation
from clipse.scoring.embedding import EmbeddedPairs
from clipse.scoring.evaluation import evaluate


def test_a_median_between_two_ranks_keeps_its_half(capsys):
    image_ND, text_TD = torch.eye(20), torch.ones(20, 20)  # every image ties with all others
    evaluation = evaluate(EmbeddedPairs(image_ND, text_TD, torch.arange(20)), ceiling={})
    assert evaluation.result.metrics["t2i/MedR"] == 10.5
    print_evaluation(evaluation, title="ties")
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "text → image" in line)
    assert row.split()[-2] == "10.5"
