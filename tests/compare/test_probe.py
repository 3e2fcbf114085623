"""A probe through the command line: two arms of a world of three capitals; what it keeps, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from treegrpo_cli.compare.arms import Arm, load_arms
from treegrpo_cli.compare.probe import Probe, run_probe, turns
from treegrpo_cli.compare.probe_arms import ProbeOptions, probed_configs, repeated
from treegrpo_cli.compare.probe_report import markdown
from treegrpo_cli.compare.probe_statistics import ArmFigures, Interval
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import dump_config
from treegrpo_cli.errors import FileError, Stopped, UserError
from treegrpo_cli.run.progress import Reporter

from tests.runs import small_run, treegrpo
from tests.tiny import make_tiny_model

ARMS: dict[str, str] = {
    "two": "[rollout]\nnum_trees = 2\nnum_rounds = 0\n",
    "same": "[rollout]\nnum_trees = 2\nnum_rounds = 0\n",
    "dealt": (
        "[rollout]\nnum_trees = 1\nnum_expansions = 1\nnum_rounds = 1\nallocation = 'uncertain'\n"
        "[advantage]\ndead_prompts = 'refill'\n[train]\nmax_gen_batches = 2\n"
    ),
    "four": "[rollout]\nnum_trees = 4\nnum_rounds = 0\n[advantage]\nestimator = 'grpo'\n",
}
OPTIONS = ["--probe", "--prompts", "3", "--repeats", "2", "--reference-chains", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arms, what they have in common, and a probe of them."""
    folder = tmp_path_factory.mktemp("probe")
    settings = small_run(folder, make_tiny_model(folder / "model", hidden=32), train={"prompts_per_step": 2})
    del settings["output_dir"]
    (folder / "common.toml").write_text(dump_config(Config.model_validate(settings)))
    for name, text in ARMS.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def probed(folder: Path) -> Path:
    done = treegrpo(*command(folder), "--output", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Quality of a step's gradient" in done.stdout
    assert done.stderr.count("rollouts run on") == 1, "arms of one model share an engine"
    return folder / "out" / "probe"


def command(folder: Path, *arms: str) -> list[str]:
    return ["compare", *(f"{name}.toml" for name in arms or ARMS), "--common", "common.toml", *OPTIONS]


def results(probed: Path) -> dict[str, dict[str, Any]]:
    return {arm["name"]: arm for arm in json.loads((probed / "results.json").read_text())["arms"]}


def lines(probed: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (probed / "repeats.jsonl").read_text().splitlines()]


def test_every_arm_and_the_reference_play_the_same_prompts_repeat_by_repeat(probed: Path) -> None:
    order = [(line["arm"], line["repeat"]) for line in lines(probed)]
    assert order == list(turns(["two", "same", "dealt", "four", "reference"], 2))
    for line in lines(probed):
        numbers = [row["number"] for row in line["prompts"]]
        assert numbers[:3] == [0, 1, 2] if line["arm"] == "dealt" else numbers == [0, 1, 2]


def test_equal_arms_are_equal(probed: Path) -> None:
    """Arms share the draws of a repeat."""
    same, two = results(probed)["same"], results(probed)["two"]
    assert same["figures"]["variance"] == two["figures"]["variance"]
    assert same["figures"]["tokens"] == two["figures"]["tokens"]
    assert same["against_first"]["tokens"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_an_arm_with_twice_the_leaves_takes_twice_the_tokens_and_has_less_noise(probed: Path) -> None:
    four, two = results(probed)["four"], results(probed)["two"]
    assert four["against_first"]["tokens"]["value"] == pytest.approx(2.0, rel=0.2)
    assert four["figures"]["variance"]["value"] < two["figures"]["variance"]["value"]


def test_two_repeats_draw_differently_and_the_first_is_no_training_run(probed: Path) -> None:
    first, second = (np.load(probed / "vectors" / f"two-0000{repeat}.npy") for repeat in range(2))
    assert first.shape == second.shape == (3, first.shape[1])
    assert not np.allclose(first, second)


def test_report_numbers_and_pictures_lie_beside_each_other(probed: Path) -> None:
    names = {path.name for path in probed.iterdir()}
    assert {"report.md", "results.json", "probe.png", "probe.svg"} <= names
    report = (probed / "report.md").read_text()
    assert "3 prompts, each 2 times under every arm" in report
    assert "| four |" in report


def test_a_probe_goes_on_from_what_is_there_and_comes_out_as_if_never_stopped(folder: Path, probed: Path) -> None:
    other = folder / "other"
    shutil.copytree(probed, other / "probe")
    kept = (other / "probe" / "repeats.jsonl").read_bytes().splitlines(keepends=True)
    (other / "probe" / "repeats.jsonl").write_bytes(b"".join(kept[:5]) + kept[5][:40])
    done = treegrpo(*command(folder), "--output", "other", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "probing 10/10" in done.stderr
    found, before = results(other / "probe"), results(probed)
    for name in ARMS:
        for key in ("signal", "variance", "cosine", "tokens", "share_nodes"):
            assert found[name]["figures"][key] == before[name]["figures"][key], (name, key)
    assert len(lines(other / "probe")) == 10


def test_what_is_done_is_read_without_a_model(folder: Path, probed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("treegrpo_cli.compare.probe.Bench", None)
    shown = list[Probe]()
    options = ProbeOptions(num_prompts=3, num_repeats=2, num_chains=4)
    run_probe(arms_of(folder), options, probed, Reporter(quiet=True), shown.append)
    assert list(shown[0].figures) == list(ARMS)
    expected = results(probed)["four"]["figures"]["variance"]["value"]
    assert shown[0].figures["four"].absolute["variance"].value == expected


def test_a_stopped_probe_keeps_and_shows_what_every_arm_has_done(
    folder: Path, probed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopping:
        num_parameters = 1

        def __init__(self, *_: Any) -> None:
            pass

        def roll(self, *_: Any) -> None:
            raise Stopped(2)

    stopped = folder / "stopped"
    shutil.copytree(probed, stopped)
    monkeypatch.setattr("treegrpo_cli.compare.probe.Bench", Stopping)
    shown = list[Probe]()
    options = ProbeOptions(num_prompts=3, num_repeats=5, num_chains=4)
    with pytest.raises(Stopped, match="the same command goes on from here"):
        run_probe(arms_of(folder), options, stopped, Reporter(quiet=True), shown.append)
    assert [probe.num_repeats for probe in shown] == [2]
    assert lines(stopped) == lines(probed)


def test_cosines_may_be_with_the_first_arm_itself(folder: Path, probed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treegrpo_cli.compare.probe.Bench", None)
    shown = list[Probe]()
    options = ProbeOptions(num_prompts=3, num_repeats=2, against="first")
    run_probe(arms_of(folder), options, probed, Reporter(quiet=True), shown.append)
    assert shown[0].against == "two"
    assert "cosines are with two's own mean gradient" in markdown(shown[0])


def arms_of(folder: Path) -> list[Arm]:
    return load_arms([folder / f"{name}.toml" for name in ARMS], folder / "common.toml")


def test_another_question_in_the_same_folder_is_one_line(folder: Path, probed: Path) -> None:
    done = treegrpo(*command(folder), "loss.kl_coef=0.1", "--output", "out", cwd=folder)
    assert done.returncode == 2
    assert "holds a probe with arm two: loss.kl_coef = 0.0, now 0.1; give another --output" in done.stderr
    with pytest.raises(FileError, match="holds a probe with num_prompts = 3, now 2"):
        run_probe(arms_of(folder), ProbeOptions(num_prompts=2, num_repeats=2, num_chains=4), probed, Reporter(), print)


def test_vectors_that_are_no_vectors_are_one_line(folder: Path, probed: Path) -> None:
    broken = folder / "broken"
    shutil.copytree(probed, broken)
    (broken / "vectors" / "same-00001.npy").write_bytes(b"no numpy")
    with pytest.raises(FileError, match=r"same-00001\.npy"):
        run_probe(arms_of(folder), ProbeOptions(num_prompts=3, num_repeats=2, num_chains=4), broken, Reporter(), print)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["--repeats", "3"], "--repeats: only with --probe"),
        (["--probe", "--budget-tokens", "100"], "--budget-tokens: not with --probe, which trains nothing"),
        (["--probe", "--seeds", "3"], "--seeds: not with --probe"),
        (["--probe", "--repeats", "1"], "--repeats 1: pairs of repeats need two of them"),
        (["--probe", "--prompts", "1"], "--prompts 1: intervals are over prompts"),
        (
            ["--probe", "--reference", "first", "--reference-chains", "8"],
            "--reference-chains: not with --reference first",
        ),
        (["--probe", "--reference-chains", "1"], "--reference-chains 1: a baseline of the others needs two"),
        (["--probe", "data.limit=2", "rollout.top_p=0.5"], "rollout.top_p: training needs the whole distribution"),
    ],
)
def test_what_cannot_be_probed_is_one_line(folder: Path, typed: list[str], line: str) -> None:
    arms = ["compare", "two.toml", "four.toml", "--common", "common.toml", "--output", "refused"]
    done = treegrpo(*arms, *typed, cwd=folder)
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_arms_at_different_policies_or_prompts_are_refused(folder: Path) -> None:
    arms = arms_of(folder)
    other = Arm("other", folder / "other.toml", {**arms[0].settings, "model": {"path": "elsewhere"}})
    with pytest.raises(FileError, match=r"other\.toml: model\.path = 'elsewhere' and .* in .*two\.toml"):
        probed_configs([arms[0], other], ProbeOptions())
    reserved = Arm("reference", folder / "reference.toml", arms[0].settings)
    with pytest.raises(UserError, match="an arm cannot be called 'reference'"):
        probed_configs([arms[0], reserved], ProbeOptions())


def test_the_reference_is_plain_chains_whatever_the_first_arm_does() -> None:
    arm = Arm(
        "a",
        Path("a.toml"),
        {
            "rollout": {"num_trees": 3, "num_rounds": 2, "num_kept_leaves": 2, "max_turns": 5},
            "advantage": {"estimator": "parent", "dead_prompts": "drop"},
            "loss": {"kl_coef": 0.1, "prefix_weight": 0.5},
            "budget": {"prompt_tokens": 100},
        },
    )
    reference = probed_configs([arm], ProbeOptions(num_chains=9))["reference"]
    assert (reference.rollout.num_trees, reference.rollout.num_rounds, reference.rollout.max_turns) == (9, 0, 5)
    assert reference.advantage.options == {"center": "loo", "scale": "none"}
    assert (reference.loss.kl_coef, reference.loss.denominator, reference.loss.prefix_weight) == (0.0, "constant", 1.0)
    assert reference.budget == Config().budget
    assert reference.advantage.dead_prompts == "keep"


def test_repeats_differ_by_their_keys_alone() -> None:
    config = Config()
    first, second, again = (repeated(config, repeat, 5) for repeat in (0, 1, 0))
    assert first == again
    assert len({config.seed, first.seed, second.seed}) == 3
    assert first.train.prompts_per_step == 5
    assert second.model_copy(update={"seed": first.seed}) == first


def test_what_is_not_known_stands_as_such_in_the_tables() -> None:
    nothing, all_of_it = Interval(float("nan"), float("nan"), float("nan")), Interval(1.0, 0.0, float("inf"))
    names = [f"{prefix}{name}" for prefix in ("", "prompt_") for name in ("cosine", "signal")]
    names += [f"{prefix}quality_per_{cost}" for prefix in ("", "prompt_") for cost in ("token", "tool_call", "second")]
    names += ["variance", "tokens", "tool_calls", "seconds", "share_prompts", "share_nodes"]
    known = ArmFigures(dict.fromkeys(names, all_of_it), dict.fromkeys(names, all_of_it))
    unknown = ArmFigures(dict.fromkeys(names, nothing), dict.fromkeys(names, nothing))
    text = markdown(Probe({"a": known, "b": known, "c": unknown}, 3, 2, "reference"))
    assert "| b | 1.00 [0.00, ∞] |" in text
    assert "| c | – | – | – | – | – ×– | – ×– |" in text


def test_settings_that_came_with_a_newer_version_are_taken_for_their_defaults(folder: Path, probed: Path) -> None:
    older = folder / "older"
    shutil.copytree(probed, older)
    head = json.loads((older / "probe.json").read_text())
    for settings in head["arms"].values():
        del settings["rollout.rescue"], settings["budget.step_tokens"]
    (older / "probe.json").write_text(json.dumps(head))
    options, shown = ProbeOptions(num_prompts=3, num_repeats=2, num_chains=4), list[Probe]()
    run_probe(arms_of(folder), options, older, Reporter(), shown.append)
    assert shown[0].num_repeats == 2
    for settings in head["arms"].values():
        settings["rollout.max_rescues"] = 3
    (older / "probe.json").write_text(json.dumps(head))
    with pytest.raises(FileError, match=r"holds a probe with arm two: rollout\.max_rescues = 3, now 8"):
        run_probe(arms_of(folder), options, older, Reporter(), print)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("repeats.jsonl", b'{"arm": "two", "repeat": 0}\n', r"repeats\.jsonl:1: is not what a probe wrote"),
        ("repeats.jsonl", b'{"arm": "two"\n{}\n', r"repeats\.jsonl:1: is no JSON"),
        ("probe.json", b'{"format": 1}', r"probe\.json: is not what a probe wrote: it has no arms"),
    ],
)
def test_files_that_no_probe_wrote_are_one_line(
    file: str, content: bytes, message: str, folder: Path, probed: Path, tmp_path: Path
) -> None:
    shutil.copytree(probed, tmp_path / "probe")
    (tmp_path / "probe" / file).write_bytes(content)
    options = ProbeOptions(num_prompts=3, num_repeats=2, num_chains=4)
    with pytest.raises(FileError, match=message):
        run_probe(arms_of(folder), options, tmp_path / "probe", Reporter(), print)
