"""Reports made again from results.json files: equal to the first, complete, or refused before anything is written."""

import json
import re
import shutil

import pytest
from simulated_runs import compare_config, run_results

from hf_transfer.comparison import join
from hf_transfer.errors import InputError
from hf_transfer.rebuild import rebuild_report
from hf_transfer.report import read_results, write_json
from hf_transfer.report.files import write_comparison

RIGHT = {"books": 0.9, "apps": 0.7}
REPORT = ("results.json", "report.html", "report.md", "figures")
CONFIG = compare_config(evaluate={"confidence": 0.95, "resamples": 200})


def run_of(name="lora", seed=0, change=0.0, **about):
    right = {domain: value + change - 0.01 * seed for domain, value in RIGHT.items()}
    return run_results(name, seed, right, **({"resamples": 200, "config_seed": 0} | about))


def facts(name, seed, direction="books"):
    return {
        "name": f"{name}-s{seed}",
        "strategy": name,
        "seed": seed,
        "direction": direction,
        "target_domain": None,
        "target_examples": 0,
        "with_source": True,
    }


def write_run(folder, results):
    folder.mkdir(parents=True)
    write_json(folder / "results.json", results)
    return folder


PLAN = [facts("tfidf", 0), facts("lora", 0), facts("full", 0), facts("lora", 1), facts("full", 1), facts("before", 0)]
DISTANCES = [{"source": "books", "target": "apps", "mmd": 0.2, "words": [["app", 0.0, 0.1]]}]
SHOWN = [
    {
        "strategy": "lora",
        "domain": "apps",
        "text": "t",
        "reference": "negative",
        "predicted": "positive",
        "confidence": 0.9,
    }
]


def write_compared(folder):
    """A comparison as ``compare`` leaves it: full of seed 1 failed, before does not apply. Returns its results."""
    made = [(plan, run_of(plan["strategy"], plan["seed"], -0.1 * (plan["strategy"] == "tfidf"))) for plan in PLAN[:4]]
    for plan, results in made:
        write_run(folder / "runs" / plan["name"], results)
    (folder / "runs" / "full-s1").mkdir()
    (folder / "runs" / "full-s1" / "error.txt").write_text(
        "Traceback:\n  ...\nhf_transfer.errors.RunError: no memory\n"
    )
    write_json(folder / "plan.json", PLAN)
    kept = {"f" * 64 + "\0org/small-bert\x00256\0books\0apps": {k: DISTANCES[0][k] for k in ("mmd", "words")}}
    write_json(folder / "distances.json", kept | {"other\0books\0few": None})
    (folder / "config.yaml").write_text(json.dumps(CONFIG | {"output_dir": "/home/someone/secret/compare"}))
    joined = join(
        [results for _, results in made],
        config=CONFIG,
        other_runs=[PLAN[4] | {"status": "failed", "error": "no memory"}],
        distances=DISTANCES,
        notes=["control before does not apply: it has no head."],
        examples_shown=SHOWN,
    )
    write_comparison(folder, joined)
    return joined


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "compare"
    folder.mkdir()
    return folder, write_compared(folder)


@pytest.fixture
def compared(made, tmp_path):
    """A copy of the comparison, and its results."""
    folder = tmp_path / "compare"
    shutil.copytree(made[0], folder)
    return folder, made[1]


def files_of(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def remove_report(folder):
    for name in REPORT[:3]:
        (folder / name).unlink()
    shutil.rmtree(folder / "figures")


# ---- a comparison ----------------------------------------------------------------------------------------------


def test_a_report_made_again_is_the_same_to_the_byte(compared):
    folder, joined = compared
    before = files_of(folder)
    results, where = rebuild_report([folder])
    assert results == joined and where == folder
    after = files_of(folder)
    for path in before:
        if path.suffix != ".svg" and path.name != "report.html":  # plots may carry ids of their own
            assert after[path] == before[path], path.name
    assert after.keys() == before.keys()
    assert rebuild_report([str(folder)])[0] == joined, "and a third time"


def test_it_can_be_written_elsewhere_and_leaves_the_comparison_alone(compared, tmp_path):
    folder, joined = compared
    before = files_of(folder)
    results, where = rebuild_report([folder], tmp_path / "new" / "place")
    assert results == joined and read_results(where) == joined
    assert files_of(folder) == before
    assert sorted(path.name for path in where.iterdir()) == sorted(REPORT)
    assert rebuild_report([folder], where)[0] == joined, "a joint report may be made again"


def test_a_comparison_that_was_stopped_is_reported_with_what_failed_and_what_is_missing(compared):
    folder, joined = compared
    remove_report(folder)
    results, _ = rebuild_report([folder])
    for key in (
        "scores",
        "comparisons",
        "summary",
        "answer",
        "cost",
        "distances",
        "confusion",
        "strategies",
        "controls",
    ):
        assert results[key] == joined[key], key
    others = [(run["name"], run["status"], run["error"]) for run in results["runs"] if run["status"] != "finished"]
    assert others == [("full-s1", "failed", "hf_transfer.errors.RunError: no memory"), ("before-s0", "missing", "")]
    assert "1 of 6 runs failed and is not in the tables: full-s1." in results["warnings"]
    assert "1 run is missing: before-s0." in results["warnings"]
    assert results["config"] == CONFIG, "its own config, without the folder of this machine"
    assert "secret" not in (folder / "results.json").read_text()


def test_a_run_that_was_removed_is_missing(compared):
    folder, _ = compared
    shutil.rmtree(folder / "runs" / "lora-s1")
    runs = rebuild_report([folder])[0]["runs"]
    assert [(run["name"], run["status"]) for run in runs if run["status"] != "finished"] == [
        ("lora, seed 1, on books", "missing"),
        ("full-s1", "failed"),
    ]
    assert read_results(folder)["warnings"][1].startswith("1 run is missing: lora, seed 1")


def test_a_run_that_was_made_since_is_taken_up(compared):
    folder, _ = compared
    (folder / "runs" / "full-s1" / "error.txt").unlink()
    write_json(folder / "runs" / "full-s1" / "results.json", run_of("full", 1))
    results, _ = rebuild_report([folder])
    assert {run["status"] for run in results["runs"]} == {"finished"}
    assert [(run["strategy"], run["seed"]) for run in results["runs"]][-1] == ("full", 1)


def test_runs_that_are_not_in_the_plan_are_left_out_and_named(compared):
    folder, joined = compared
    write_run(folder / "runs" / "probe-s0", run_of("probe"))
    results, _ = rebuild_report([folder])
    assert results["scores"] == joined["scores"]
    assert "Not in the plan of the comparison, and left out: probe-s0." in results["notes"]


def test_without_its_plan_runs_stay_in_their_order(compared):
    folder, joined = compared
    (folder / "plan.json").unlink()
    assert rebuild_report([folder])[0] == joined
    remove_report(folder)
    results, _ = rebuild_report([folder])
    assert [run["strategy"] for run in results["runs"]] == ["full", "lora", "lora", "tfidf"], "by name"
    assert {run["status"] for run in results["runs"]} == {"finished"}, "what is missing cannot be known"


@pytest.mark.parametrize("text", ["[{", "{}", '["lora-s0"]', '[{"name": "lora-s0"}]', "null", b"\xff\xfe"])
def test_a_damaged_plan_is_refused_with_a_remedy_and_nothing_written(compared, text):
    folder, _ = compared
    remove_report(folder)
    (folder / "plan.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    before = files_of(folder)
    with pytest.raises(InputError, match=r"plan\.json .*: repeat the comparison, or remove the file to report on the"):
        rebuild_report([folder])
    assert files_of(folder) == before


@pytest.mark.parametrize("name", ["../../elsewhere", "/elsewhere", "..", "", 3])
def test_a_plan_that_names_a_folder_elsewhere_is_refused_and_that_folder_not_read(compared, tmp_path, name):
    folder, _ = compared
    remove_report(folder)
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "error.txt").write_text("secret")
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps([*plan, plan[0] | {"name": name}]))
    with pytest.raises(InputError, match=rf"plan\.json names {re.escape(repr(name))}, which is no folder in runs/"):
        rebuild_report([folder])


@pytest.mark.parametrize("text", ["not: [a", "seed: 3", "a list", "evaluate: 3\nseed: 0", ""])
def test_a_damaged_config_gives_way_to_that_of_a_run(compared, text):
    folder, joined = compared
    remove_report(folder)
    (folder / "config.yaml").write_text(text)
    results, _ = rebuild_report([folder])
    assert results["config"] == run_of("tfidf")["config"] and results["comparisons"] == joined["comparisons"]


def test_train_domains_in_another_order_are_the_same_run(tmp_path):
    runs = [run_results("lora", s, RIGHT | {"dvd": 0.9}, resamples=200, train=("books", "dvd")) for s in (0, 1)]
    write_run(tmp_path / "runs" / "lora-s0", runs[0])
    write_json(tmp_path / "plan.json", [facts("lora", seed, "dvd, books") for seed in (0, 1)])
    first, _ = rebuild_report([tmp_path])
    assert [run["status"] for run in first["runs"]] == ["finished", "missing"]
    assert rebuild_report([tmp_path])[0] == first
    write_run(tmp_path / "runs" / "lora-s1", runs[1])
    assert [run["status"] for run in rebuild_report([tmp_path])[0]["runs"]] == ["finished", "finished"]


def test_a_comparison_whose_runs_are_gone_is_written_from_its_own_results(compared, tmp_path):
    folder, joined = compared
    shutil.rmtree(folder / "runs")
    (folder / "report.html").unlink()
    for place in (None, tmp_path / "other"):
        results, where = rebuild_report([folder], place)
        assert results == joined == read_results(where)
        assert (where / "report.html").read_text().startswith("<!doctype html>")


def test_a_comparison_of_which_no_run_is_finished_says_so(compared):
    folder, _ = compared
    remove_report(folder)
    shutil.rmtree(folder / "runs")
    with pytest.raises(InputError, match=r"none of the runs planned in .*compare is finished: repeat the comparison"):
        rebuild_report([folder])


# ---- runs made at different times ------------------------------------------------------------------------------


def test_single_runs_are_joined_in_the_order_given(tmp_path):
    runs = {name: run_of(name, change=change) for name, change in (("lora", 0), ("full", 0.01), ("tfidf", -0.1))}
    folders = [write_run(tmp_path / name, results) for name, results in runs.items()]
    results, where = rebuild_report([folders[1], folders[0], folders[2] / "results.json"], tmp_path / "all")
    in_order = [runs["full"], runs["lora"], runs["tfidf"]]
    assert results == join(in_order, config=runs["full"]["config"])
    assert (results["strategies"], results["controls"]) == (["full", "lora"], ["tfidf"])
    assert sorted(path.name for path in where.iterdir()) == sorted(REPORT)


def test_a_comparison_and_a_later_run_are_joined(compared, tmp_path):
    folder, joined = compared
    later = write_run(tmp_path / "probe", run_of("probe"))
    results, _ = rebuild_report([folder, later], tmp_path / "all")
    assert results["strategies"] == [*joined["strategies"], "probe"]
    assert results["config"] == joined["config"] and results["distances"][0]["mmd"] == 0.2
    assert [run["status"] for run in results["runs"]].count("failed") == 1


@pytest.mark.parametrize("reported", [False, True])
def test_a_run_that_failed_in_one_folder_and_is_finished_in_another_is_there(compared, tmp_path, reported):
    folder, _ = compared
    if not reported:
        (folder / "results.json").unlink()
    again = write_run(tmp_path / "again", run_of("full", 1))
    results, _ = rebuild_report([folder, again], tmp_path / "all")
    assert [run["status"] for run in results["runs"] if (run["strategy"], run["seed"]) == ("full", 1)] == ["finished"]
    assert not any("failed" in warning for warning in results["warnings"])


@pytest.mark.parametrize("reported", [False, True])
def test_two_comparisons_are_joined_with_what_each_knows(compared, tmp_path, reported):
    folder, joined = compared
    other = tmp_path / "other"
    write_run(other / "runs" / "probe-s0", run_of("probe"))
    write_json(other / "plan.json", [facts("probe", 0), facts("probe", 1)])
    (other / "config.yaml").write_text(json.dumps(CONFIG | {"seed": 9}))
    if reported:
        rebuild_report([other])
    results, _ = rebuild_report([folder, other], tmp_path / "all")
    assert results["strategies"] == [*joined["strategies"], "probe"]
    assert results["config"] == CONFIG, "of the first"
    assert {(run["name"], run["status"]) for run in results["runs"] if run["status"] != "finished"} == {
        ("full-s1", "failed"),
        ("probe-s1", "missing"),
    }


@pytest.mark.parametrize("failed_first", [False, True])
def test_a_run_that_two_folders_lack_is_told_once_and_its_failure_stands(compared, tmp_path, failed_first):
    folder, _ = compared
    other = tmp_path / "other"
    write_run(other / "runs" / "probe-s0", run_of("probe"))
    write_json(other / "plan.json", [facts("probe", 0), *PLAN])
    (other / "config.yaml").write_text(json.dumps(CONFIG))
    folders = [folder, other] if failed_first else [other, folder]
    results, _ = rebuild_report(folders, tmp_path / "all")
    unfinished = [
        (run["strategy"], run["seed"], run["status"]) for run in results["runs"] if run["status"] != "finished"
    ]
    assert unfinished.count(("full", 1, "failed")) == 1 and len(unfinished) == len({run[:2] for run in unfinished})


def test_controls_inside_a_run_are_said_to_be_left_out(tmp_path):
    lora = run_of("lora")
    lora["scores"].append(lora["scores"][0] | {"stage": "tfidf"})
    folders = [write_run(tmp_path / "lora", lora), write_run(tmp_path / "tfidf", run_of("tfidf"))]
    results, _ = rebuild_report(folders, tmp_path / "all")
    assert results["notes"] == [
        "lora was scored beside tfidf, whose predictions it does not hold: that part is in its own report only."
    ]


# ---- refusals --------------------------------------------------------------------------------------------------


def refused(tmp_path, match, folders, *place):
    before = files_of(tmp_path)
    with pytest.raises(InputError, match=match):
        rebuild_report(folders, *place)
    assert files_of(tmp_path) == before, "nothing is written"


def test_what_cannot_be_read_is_refused_with_a_remedy(tmp_path):
    run = write_run(tmp_path / "lora", run_of())
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    refused(tmp_path, "needs one folder or more", [])
    refused(tmp_path, "several folders, or a file, need --output_dir", [run, run])
    refused(tmp_path, "several folders, or a file, need --output_dir", [run / "results.json"])
    refused(tmp_path, "lora holds one run, whose own results.json .*: give --output_dir", [run])
    refused(
        tmp_path, r"nowhere.* cannot be read \(No such file or directory\): give the output", [tmp_path / "nowhere"]
    )
    refused(tmp_path, r"empty/results.json cannot be read", [tmp_path / "empty"])
    refused(tmp_path, r"broken/results.json is not JSON", [run, tmp_path / "broken"], tmp_path / "all")
    assert not (tmp_path / "all").exists() and not (tmp_path / "nowhere").exists()


def test_a_run_is_named_with_its_folder_when_it_cannot_be_joined(tmp_path):
    lora = write_run(tmp_path / "a", run_of())
    other = write_run(tmp_path / "b", run_of() | {"task": "other"})
    place = tmp_path / "all"
    refused(tmp_path, r"\(.*/b\) cannot be compared with .*\(.*/a\): task is other, not", [lora, other], place)
    refused(tmp_path, r"two runs of lora, seed 0, on books are given \(.*/a and .*/a\)", [lora, lora], place)


def test_a_comparison_without_runs_cannot_be_joined(compared, tmp_path):
    folder, _ = compared
    shutil.rmtree(folder / "runs")
    run = write_run(tmp_path / "probe", run_of("probe"))
    refused(tmp_path, "compare is a comparison without its runs", [folder, run], tmp_path / "all")


def test_a_report_does_not_replace_the_results_of_others(compared, tmp_path):
    folder, _ = compared
    run = write_run(tmp_path / "probe", run_of("probe"))
    refused(tmp_path, "probe holds a run, whose results.json this would replace", [folder, run], run)
    refused(tmp_path, "compare holds a comparison with its runs, whose results.json", [folder, run], folder)
    refused(tmp_path, "probe holds a run, whose results.json this would replace", [folder], run)
    refused(tmp_path, "probe holds a run, whose results.json", [run], run)


def test_a_place_that_cannot_be_written_is_refused(compared, tmp_path):
    folder, _ = compared
    (tmp_path / "file").write_text("")
    refused(tmp_path, "file is a file, not a folder: choose another path", [folder], tmp_path / "file")
    refused(
        tmp_path, r"file/below cannot be written \(.*\): choose another path", [folder], tmp_path / "file" / "below"
    )
