"""Run folders: complete or not at all; aligned tables; a ledger of phases."""

import json
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.files import full_disk

from clip_common.runs import (
    MetricsCsv,
    PhaseLedger,
    Run,
    RunExistsError,
    append_row,
    read_rows,
    write_atomically,
    write_json,
)


def create(root, **arguments):
    return Run.create("clipse", **({"config_yaml": "seed: 1\n", "root": root} | arguments))


def test_a_run_is_a_folder_with_configuration_and_environment(tmp_path):
    run = create(tmp_path, name="first")
    assert run.path == tmp_path / "clipse" / "first"
    assert run.config_yaml == "seed: 1\n"
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["hardware"]["cores"] >= 1
    assert sorted(path.name for path in run.path.parent.iterdir()) == ["first"]


def test_a_run_without_a_name_is_called_by_its_label_and_time(tmp_path):
    assert create(tmp_path, label="clip_seed1").name.startswith("clip_seed1_20")


def test_a_run_that_exists_is_not_overwritten(tmp_path):
    run = create(tmp_path, name="first")
    run.write_result({"rsum": 1.0})
    with pytest.raises(RunExistsError, match="first exists: resume it, or choose another name"):
        create(tmp_path, name="first", config_yaml="seed: 2\n")
    with pytest.raises(RunExistsError):
        Run.check_new("clipse", "first", root=tmp_path)
    Run.check_new("clipse", "second", root=tmp_path)
    assert run.result == {"rsum": 1.0}
    assert run.config_yaml == "seed: 1\n"
    assert [path.name for path in run.path.parent.iterdir()] == ["first"]


def test_a_run_is_resumed_with_its_own_configuration_only(tmp_path):
    assert create(tmp_path, name="first", resume=True).path.exists()  # nothing to resume yet: it starts
    create(tmp_path, name="first", resume=True)
    assert len(json.loads((tmp_path / "clipse/first/environment.json").read_text())["resumed"]) == 1
    with pytest.raises(ValueError, match=r"another configuration \(seed: 1 → seed: 2\)"):
        create(tmp_path, name="first", config_yaml="seed: 2\n", resume=True)
    with pytest.raises(ValueError, match="give its name"):
        create(tmp_path, resume=True)


def test_a_run_is_resumed_wherever_it_lies(tmp_path):
    moved = create(tmp_path, name="first").path.rename(tmp_path / "kept")
    run = Run.resume(moved, config_yaml="seed: 1\n")
    assert run.path == moved
    assert len(json.loads((moved / "environment.json").read_text())["resumed"]) == 1
    assert not (tmp_path / "clipse" / "kept").exists()
    with pytest.raises(ValueError, match=r"another configuration \(seed: 1 → seed: 2\)"):
        Run.resume(moved, config_yaml="seed: 2\n")
    with pytest.raises(ValueError, match="not a run folder"):
        Run.resume(tmp_path / "nowhere", config_yaml="seed: 1\n")


def _hold(path, held, free):
    with Run.open(path).locked():
        held.set()
        free.wait()


def test_one_process_at_a_time_trains_in_a_run(tmp_path, monkeypatch):
    run = create(tmp_path, name="first")
    context = multiprocessing.get_context("fork")
    held, free = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(run.path, held, free))
    process.start()
    assert held.wait(timeout=60)
    with (
        pytest.raises(ValueError, match="first is being trained by another process: wait until that ends"),
        run.locked(),
    ):
        pass
    monkeypatch.setenv("RANK", "1")
    with run.locked():  # a later process of the job that holds it
        pass
    monkeypatch.delenv("RANK")
    process.kill()
    process.join()
    with run.locked(), Run.open(run.path).locked():  # free again, and a process may take its own twice
        pass


@pytest.mark.parametrize("name", ["été à Zürich", "実験 1", "a=b, c;d", "🐕"])
def test_a_name_may_be_any_unicode(tmp_path, name):
    run = create(tmp_path, name=name)
    run.register({"rsum": 1})
    assert Run.open(run.path).name == name
    assert read_rows(tmp_path / "registry.csv")[0]["name"] == name


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="expected the name of a folder"):
        create(tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_written_leaves_nothing(tmp_path):
    with full_disk(10), pytest.raises(OSError):
        create(tmp_path, name="first", config_yaml="seed: 1\n" * 10)
    assert list((tmp_path / "clipse").iterdir()) == []


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        Run.open(tmp_path / "nowhere")


def test_other_processes_open_the_run_that_the_first_one_makes(tmp_path, monkeypatch):
    made = create(tmp_path, label="some")
    monkeypatch.setenv("RANK", "1")
    other = create(tmp_path, label="other")
    assert other.path.samefile(made.path)
    other.write_result({"rsum": 1})
    other.register({"rsum": 1})
    assert other.result == {}
    assert not (tmp_path / "registry.csv").exists()


def test_results_hold_plain_numbers(tmp_path):
    run = create(tmp_path, name="first")
    run.write_result({"a": np.float32(0.5), "b": torch.tensor(2), "c": {"d": np.arange(2)}, "path": run.path, "ü": "ü"})
    assert run.result == {"a": 0.5, "b": 2, "c": {"d": [0, 1]}, "path": run.path.as_posix(), "ü": "ü"}


def test_the_model_card_has_what_the_hub_reads(tmp_path):
    run = create(tmp_path, name="first")
    file = run.write_model_card(
        title="A model",
        summary="It retrieves.",
        results={"rsum": 231.456},
        usage="load()",
        sections={"Limits": "Many."},
    )
    card = file.read_text()
    assert card.startswith("---\nlicense: apache-2.0\ntags:\n- clipse\n---\n\n# A model\n\nIt retrieves.")
    assert "| rsum | 231.5 |" in card
    assert "```yaml\nseed: 1\n```" in card
    assert "## Limits\n\nMany." in card


# ----------------------------------------------------------------------------------------------------------- tables


def test_a_new_column_keeps_all_rows_aligned(tmp_path):
    table = MetricsCsv(tmp_path / "metrics.csv")
    table.append({"step": 1, "loss": 0.1})
    table.append({"step": 2, "val/rsum": 3.5})
    table.append({"val/rsum": 4, "step": 3, "note": 'a, "b"\nc'})
    assert table.rows() == [
        {"step": "1", "loss": "0.1", "val/rsum": "", "note": ""},
        {"step": "2", "loss": "", "val/rsum": "3.5", "note": ""},
        {"step": "3", "loss": "", "val/rsum": "4", "note": 'a, "b" c'},
    ]
    assert len(table.path.read_text().splitlines()) == 4


def test_numbers_read_back_to_the_same_float(tmp_path):
    values = [0.1, 1 / 3, 1e-300, float("inf")]
    append_row(tmp_path / "t.csv", {str(i): value for i, value in enumerate(values)} | {"t": torch.tensor(0.5)})
    assert [float(cell) for cell in read_rows(tmp_path / "t.csv")[0].values()] == [*values, 0.5]


def test_a_line_torn_by_a_kill_is_dropped(tmp_path):
    table = MetricsCsv(tmp_path / "metrics.csv")
    table.extend({"step": step, "loss": 0.5} for step in range(3))
    with table.path.open("a") as file:
        file.write("3,0.12")
    assert [row["step"] for row in table.rows()] == ["0", "1", "2"]
    table.append({"step": 3, "loss": 0.125})
    assert table.path.read_text() == "step,loss\n0,0.5\n1,0.5\n2,0.5\n3,0.125\n"


def test_rows_after_the_resumed_step_are_dropped_in_their_phase_only(tmp_path):
    table = MetricsCsv(tmp_path / "metrics.csv")
    table.truncate_after(5)
    table.extend({"phase": phase, "step": step} for phase in ("text", "image") for step in (1, 2, 3))
    table.truncate_after(1, phase="image")
    assert "".join(row["phase"][0] + row["step"] for row in table.rows()) == "t1t2t3i1"
    table.truncate_after(2)
    assert [row["step"] for row in table.rows()] == ["1", "2", "1"]


def test_a_full_disk_leaves_the_table_as_it_was(tmp_path):
    table = MetricsCsv(tmp_path / "metrics.csv")
    table.extend({"step": step, "loss": 0.5} for step in range(100))
    before = table.path.read_bytes()
    with full_disk(len(before) + 20), pytest.raises(OSError):
        table.extend({"step": step, "loss": 0.5} for step in range(100, 200))
    assert table.path.read_bytes() == before
    with full_disk(len(before) + 20), pytest.raises(OSError):
        table.append({"step": 100, "a column that widens every row": 1.0})
    assert table.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_full_disk_leaves_the_former_file(tmp_path):
    file = write_json(tmp_path / "result.json", {"rsum": 1})
    with full_disk(100), pytest.raises(OSError):
        write_json(file, {"rsum": list(range(1000))})
    assert json.loads(file.read_text()) == {"rsum": 1}
    with full_disk(100), pytest.raises(OSError), write_atomically(file) as temporary:
        temporary.write_bytes(bytes(200))
    assert json.loads(file.read_text()) == {"rsum": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def _register(root, process):
    for row in range(40):
        append_row(root / "registry.csv", {"process": process, "row": row, f"column {process} {row // 10}": row})


def test_two_processes_write_one_registry(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_register, args=(tmp_path, process)) for process in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = read_rows(tmp_path / "registry.csv")
    for process in ("0", "1"):
        mine = [row for row in rows if row["process"] == process]
        assert [int(row["row"]) for row in mine] == list(range(40))
        assert all(row[f"column {process} {int(row['row']) // 10}"] == row["row"] for row in mine)
    assert len(rows) == 80


# ----------------------------------------------------------------------------------------------------------- ledger


def test_the_ledger_remembers_which_phases_are_done(tmp_path):
    ledger = PhaseLedger(tmp_path / "phases.json")
    assert not ledger.started("text")
    ledger.start("text")
    started = ledger.phases()["text"]["started"]
    assert (ledger.started("text"), ledger.done("text"), ledger.payload("text")) == (True, False, {})
    ledger.finish("text", {"best": "checkpoints/text/best.ckpt"})
    ledger.start("image")

    again = PhaseLedger(tmp_path / "phases.json")
    assert (again.done("text"), again.done("image")) == (True, False)
    assert again.payload("text") == {"best": "checkpoints/text/best.ckpt"}
    assert again.phases()["text"]["started"] == started
    assert list(again.phases()) == ["text", "image"]
    again.start("text")  # once more from the beginning
    assert (again.done("text"), again.payload("text")) == (False, {})


def test_runs_do_not_import_torch():
    code = "import sys, clip_common.runs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
