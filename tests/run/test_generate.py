"""`treegrpo rollout`: trees on disk, safe at any moment, and the same whenever they are grown."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
import tomli_w
from treegrpo_cli import read_trees
from treegrpo_cli.config.files import make_config
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.rollout import journal as journal_module
from treegrpo_cli.rollout.journal import Journal
from treegrpo_cli.run.generate import generate
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.trees.stats import RolloutStats
from treegrpo_cli.trees.tree_file import TreeRecord, TreeWriter

from tests.runs import small_run, treegrpo
from tests.zygote import Command, zygote

QUIET = Reporter(quiet=True)


def settings_for(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    settings = small_run(folder, model, **changes)
    rows = [{"question": f"capital number {number}", "answer": "Lisbon"} for number in range(6)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return settings


def trees_in(path: Path) -> dict[tuple[str, int], bytes]:
    """Trees by id, without the time at which they were made."""
    trees = {}
    for record in read_trees(path):
        meta = {name: value for name, value in (record.meta or {}).items() if name != "time"}
        meta["spent"] = {name: value for name, value in meta["spent"].items() if name != "seconds"}
        trees[record.prompt_id, record.tree_id] = record.replaced(meta=meta).to_json()
    return trees


@pytest.fixture(scope="module")
def settings(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return settings_for(tmp_path_factory.mktemp("rollout"), tiny_model_dir)


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any]) -> dict[tuple[str, int], bytes]:
    """The trees of a run that nothing interrupted."""
    output = Path(settings["output_dir"]).with_name("whole.jsonl")
    generate(make_config(settings), output, QUIET)
    return trees_in(output)


def test_every_prompt_has_its_trees_scored_and_together(whole: dict[tuple[str, int], bytes]) -> None:
    assert set(whole) == {(f"{number:08d}", tree) for number in range(6) for tree in range(2)}
    for line in whole.values():
        tree = orjson.loads(line)
        assert tree["scoring"]["estimator"] == "tree-grpo"
        assert tree["task"]["ground_truth"] == "Lisbon"
        assert {"model", "sampling", "seed", "config_digest", "version"} <= set(tree["meta"])


@pytest.mark.parametrize(
    "changes",
    [{"sampler": {"max_num_seqs": 1}}, {"rollout": {"max_live_trees": 1}}, {"environment": {"workers": 2}}],
)
def test_the_same_seed_gives_the_same_trees_whatever_the_batch_and_wherever_the_world_is(
    settings: dict[str, Any], whole: dict[tuple[str, int], bytes], tmp_path: Path, changes: dict[str, Any]
) -> None:
    changed = {section: {**settings[section], **change} for section, change in changes.items()}
    generate(make_config({**settings, **changed}), tmp_path / "t.jsonl", QUIET)
    assert_same_trees(trees_in(tmp_path / "t.jsonl"), whole)


def assert_same_trees(ours: dict[tuple[str, int], bytes], theirs: dict[tuple[str, int], bytes]) -> None:
    """The same nodes to the token; log-probabilities to the rounding of another batch."""
    assert set(ours) == set(theirs)
    for key in theirs:
        nodes, others = orjson.loads(ours[key])["nodes"], orjson.loads(theirs[key])["nodes"]
        for node, other in zip(nodes, others, strict=True):
            assert node.pop("logprobs") == pytest.approx(other.pop("logprobs"), abs=1e-4)
        assert nodes == others


def test_another_seed_gives_other_trees(
    settings: dict[str, Any], whole: dict[tuple[str, int], bytes], tmp_path: Path
) -> None:
    generate(make_config({**settings, "seed": 1}), tmp_path / "t.jsonl", QUIET)
    assert all(trees_in(tmp_path / "t.jsonl")[key] != line for key, line in whole.items())


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
@pytest.mark.parametrize("num_groups", [0, 1, 3])
def test_resume_after_a_kill_gives_the_trees_of_a_whole_run(
    settings: dict[str, Any],
    whole: dict[tuple[str, int], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    num_groups: int,
) -> None:
    output, write_group, written = tmp_path / f"t{suffix}", TreeWriter.write_group, []

    def die(self: TreeWriter, group: Any) -> None:
        if len(written) == num_groups:
            raise RuntimeError("killed")
        written.append(group)
        write_group(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(TreeWriter, "write_group", die)
        with pytest.raises(RuntimeError, match="killed"):
            generate(make_config(settings), output, QUIET)
    if num_groups and suffix == ".jsonl":
        with output.open("ab") as file:
            file.write(b'{"schema": "treegrpo.tree/1", "prompt_id": "0000')
    with output.with_name(f"{output.name}.journal").open("ab") as file:
        file.write(b'{"schema": "tree')
    stats = generate(make_config(settings), output, QUIET, resume=True)
    assert_same_trees(trees_in(output), whole)
    assert stats.num_trees == 12
    aside = [f"{output.name}.damaged-1"] if num_groups and suffix == ".jsonl" else []
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name, *aside]


def test_resume_grows_only_what_the_journal_does_not_have(
    settings: dict[str, Any], whole: dict[tuple[str, int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treegrpo_cli.rollout.tree import Tree

    output = tmp_path / "t.jsonl"
    journal = Journal(output, resume=False)
    journal.start()
    for key in [("00000000", 0), ("00000003", 0), ("00000003", 1)]:
        journal.add(TreeRecord.parse(whole[key], output, 1).replaced(scoring=None))
    journal.close(complete=False)
    plant, grown = Tree.plant, []

    async def counted(self: Tree) -> None:
        grown.append((self.prompt.prompt_id, self.tree_id))
        await plant(self)

    monkeypatch.setattr(Tree, "plant", counted)
    generate(make_config(settings), output, QUIET, resume=True)
    assert len(grown) == 9
    assert not {("00000000", 0), ("00000003", 0), ("00000003", 1)} & set(grown)
    assert_same_trees(trees_in(output), whole)


def test_the_journal_is_rewritten_when_most_of_it_is_stale(
    whole: dict[tuple[str, int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "COMPACT_AT", 1)
    journal = Journal(tmp_path / "t.jsonl", resume=False)
    journal.start()
    records = [TreeRecord.parse(line, "t", 1) for _, line in sorted(whole.items())]
    for record in records[:6]:
        journal.add(record)
    assert len(journal.path.read_bytes().splitlines()) == 6
    for prompt_id in ("00000000", "00000001"):
        journal.forget(prompt_id)
        if journal.is_stale:
            journal.compact()
    assert len(journal.path.read_bytes().splitlines()) == 2
    journal.add(records[6])
    journal.close(complete=False)
    resumed = Journal(tmp_path / "t.jsonl", resume=True)
    assert len(resumed.trees) == 2


def test_an_existing_file_is_not_overwritten(settings: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    output.write_text("precious")
    with pytest.raises(FileError, match="exists; continue it with --resume"):
        generate(make_config(settings), output, QUIET)
    with pytest.raises(FileError):
        generate(make_config(settings), output, QUIET, resume=True)
    assert output.read_text() == "precious"


def test_an_output_that_was_deleted_while_it_was_written_is_not_reported_as_written(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write_group = tmp_path / "t.jsonl", TreeWriter.write_group

    def lose(self: TreeWriter, group: Any) -> None:
        write_group(self, group)
        output.unlink()

    monkeypatch.setattr(TreeWriter, "write_group", lose)
    with pytest.raises(FileError, match=r"t\.jsonl: was deleted or replaced while it was written"):
        generate(make_config({**settings, "data": {**settings["data"], "limit": 1}}), output, QUIET)


def test_what_a_stop_while_starting_leaves_is_not_in_the_way(settings: dict[str, Any], tmp_path: Path) -> None:
    output, journal = tmp_path / "t.jsonl", tmp_path / "t.jsonl.journal"
    output.touch()
    journal.write_text("a tree")
    with pytest.raises(FileError, match="exists; continue it with --resume"):
        generate(make_config(settings), output, QUIET)
    journal.write_text("")
    generate(make_config({**settings, "data": {**settings["data"], "limit": 1}}), output, QUIET)
    assert len(trees_in(output)) == 2
    assert not journal.exists()


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_a_finished_file_with_a_flipped_byte_is_resumed_to_the_same_trees_and_the_damage_named(
    settings: dict[str, Any],
    whole: dict[tuple[str, int], bytes],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    from treegrpo_cli.rollout.tree import Tree

    output = tmp_path / name
    generate(make_config(settings), output, QUIET)
    content = bytearray(output.read_bytes())
    content[len(content) // 2] ^= 0x80
    output.write_bytes(content)
    plant, grown = Tree.plant, []

    async def counted(self: Tree) -> None:
        grown.append(self.prompt.prompt_id)
        await plant(self)

    monkeypatch.setattr(Tree, "plant", counted)
    generate(make_config(settings), output, QUIET, resume=True)
    assert len(grown) <= 2
    assert len(set(grown)) == 1
    assert f"{output} was damaged" in capfd.readouterr().err
    assert_same_trees(trees_in(output), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.damaged-1"]


def test_resume_with_other_settings_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    generate(make_config({**settings, "data": {**settings["data"], "limit": 1}}), output, QUIET)
    before = output.read_bytes()
    with pytest.raises(UserError, match="trees grown with other settings"):
        generate(make_config({**settings, "seed": 5}), output, QUIET, resume=True)
    assert output.read_bytes() == before


def test_a_journal_of_other_settings_is_refused_and_kept(
    settings: dict[str, Any], whole: dict[tuple[str, int], bytes], tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "t.jsonl", resume=False)
    journal.start()
    journal.add(TreeRecord.parse(whole["00000000", 0], "t", 1))
    journal.close(complete=False)
    before = journal.path.read_bytes()
    for change in ({"seed": 5}, {"advantage": {"estimator": "grpo"}}, {"data": {**settings["data"], "split": "other"}}):
        with pytest.raises(UserError, match="trees grown with other settings"):
            generate(make_config({**settings, **change}), tmp_path / "t.jsonl", QUIET, resume=True)
    assert journal.path.read_bytes() == before


def test_a_rollout_that_could_not_start_is_not_in_the_way_of_the_next_try(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "t.jsonl"
    with pytest.raises(UserError, match=r"model.path"):
        generate(make_config({**settings, "model": {"path": str(tmp_path / "mising")}}), output, QUIET)
    assert list(tmp_path.iterdir()) == []
    generate(make_config({**settings, "data": {**settings["data"], "limit": 1}}), output, QUIET)
    assert len(trees_in(output)) == 2


def test_stats_of_a_file_are_those_of_its_run(settings: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "t.jsonl"
    stats = generate(make_config(settings), output, QUIET)
    resumed = generate(make_config(settings), output, QUIET, resume=True)
    assert resumed == stats
    assert isinstance(stats, RolloutStats)
    nodes = [node for record in read_trees(output) for node in record.nodes]
    assert stats.generated_tokens == sum(end - start for node in nodes for start, end in node["sampled"])


SLOW_TOOL = '''
import time
def slow(query: str) -> str:
    """Wait.

    Args:
        query: ignored
    """
    time.sleep(60)
'''


def start(folder: Path, settings: dict[str, Any], *arguments: str) -> Command:
    (folder / "c.toml").write_text(tomli_w.dumps(settings))
    command = zygote().start(["rollout", "c.toml", "--output", "t.jsonl", *arguments], cwd=folder)
    journal = folder / "t.jsonl.journal"
    while not (journal.exists() and journal.stat().st_size):
        assert command.poll() is None
        time.sleep(0.005)
    return command


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_cleanly_and_says_how_to_go_on(
    tiny_model_dir: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    settings = settings_for(tmp_path, tiny_model_dir)
    rows = [{"question": f"question {n}", "answer": "x"} for n in range(4000)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = start(tmp_path, settings)
    command.send_signal(number)
    done = command.communicate(timeout=60)
    assert done.returncode == code, done.stderr
    assert "--resume continues t.jsonl" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "t.jsonl.journal").exists()


def test_kill_9_loses_only_trees_in_progress(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, tiny_model_dir)
    rows = [{"question": f"capital number {number}", "answer": "Lisbon"} for number in range(12)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output, journal = tmp_path / "t.jsonl", tmp_path / "t.jsonl.journal"
    command = start(tmp_path, settings, "sampler.max_num_seqs=2")
    command.send_signal(signal.SIGKILL)
    command.communicate(timeout=60)
    before = output.read_bytes().count(b"\n") + journal.read_bytes().count(b"\n")
    assert 0 < before < 24
    config = make_config({**settings, "sampler": {**settings["sampler"], "max_num_seqs": 2}})
    generate(config, output, QUIET, resume=True)
    generate(config, tmp_path / "whole.jsonl", QUIET)
    assert_same_trees(trees_in(output), trees_in(tmp_path / "whole.jsonl"))


def test_a_full_disk_is_one_line_and_loses_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, tiny_model_dir)

    def small_files_only() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    (tmp_path / "c.toml").write_text(tomli_w.dumps(settings))
    # a full disk would leave half of a compiled module behind, and every later run would read that
    paths = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "treegrpo_cli", "rollout", "c.toml", "--output", "t.jsonl"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=small_files_only,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "t.jsonl" in done.stderr.splitlines()[-1]
    written = sum(1 for line in (tmp_path / "t.jsonl").read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
    waiting = (tmp_path / "t.jsonl.journal").read_bytes().splitlines(keepends=True)
    assert written + sum(line.endswith(b"\n") for line in waiting) > 0
    generate(make_config(settings), tmp_path / "t.jsonl", QUIET, resume=True)
    assert len(trees_in(tmp_path / "t.jsonl")) == 12


def test_a_tool_that_hangs_closes_its_branch_and_the_program_ends(tmp_path: Path) -> None:
    from treegrpo_cli.rollout.grove import Grove
    from treegrpo_cli.rollout.player import Player
    from treegrpo_cli.rollout.tree import Prompt
    from treegrpo_cli.rollout.world import World
    from treegrpo_cli.types import NodeStatus, Task

    from tests.fakes import HashSampler
    from tests.tiny import make_tiny_tokenizer

    (tmp_path / "tool.py").write_text(SLOW_TOOL.replace("def slow", "def search"))
    environment = {"name": f"{tmp_path / 'tool.py'}:search", "tool_timeout_s": 0.125, "tool_retries": 1}
    config = make_config({"environment": environment})
    tokenizer = make_tiny_tokenizer()
    player = Player(World(config, tokenizer), HashSampler(tokenizer), config)
    begin = time.monotonic()
    trees = [asyncio.run(Grove(player, Prompt(n, str(n), Task("q", "a")), [0]).run())[0] for n in range(4)]
    assert time.monotonic() - begin < 30
    failed = [turn for tree in trees for turn in tree.turns.values() if turn.status is NodeStatus.ERROR]
    assert failed
    assert all("0.125 s" in (turn.error or "") for turn in failed)


def test_the_command_reports_what_it_grew(tiny_model_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, tiny_model_dir)
    (tmp_path / "c.toml").write_text(tomli_w.dumps(settings))
    output = tmp_path / "t.jsonl"
    done = treegrpo("rollout", str(tmp_path / "c.toml"), "--output", str(output))
    assert done.returncode == 0, done.stderr
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert lines["trees"].strip() == f"12 in {output}"
    assert lines["leaves"].strip().startswith("36 (")
    assert {"turns", "tool calls", "generated tokens", "sharing ratio"} <= set(lines)
    assert "rollouts run on transformers" in done.stderr


def test_greedy_with_resume_is_refused(tmp_path: Path) -> None:
    done = treegrpo("rollout", "--greedy", "--resume", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "treegrpo: --greedy writes no trees, so there is nothing to --resume\n"


def test_sigterm_before_the_run_has_begun_is_one_line(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, treegrpo_cli.__main__ as cli, treegrpo_cli.cli.settings as settings\n"
        "settings.read_settings = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.argv = ['treegrpo', 'train']\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (143, "treegrpo: stopped\n")


def moving_reward(completions: list[str], **_: Any) -> list[float]:
    """A reward that leaves the folder that the program was started in."""
    os.chdir("/")
    return [float(len(completion)) for completion in completions]


def test_user_code_that_changes_the_working_directory_moves_no_output(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    functions = {"functions": ["tests.run.test_generate:moving_reward"]}
    generate(make_config({**settings, "reward": functions}), Path("trees.jsonl"), QUIET)
    assert Path.cwd() == Path("/")
    assert len(trees_in(tmp_path / "trees.jsonl")) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trees.jsonl"]


@pytest.mark.parametrize("num_groups", [0, 1, 3])
def test_where_expansions_are_dealt_a_rollout_resumes_to_the_same_trees(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_groups: int
) -> None:
    dealt = {
        **settings,
        "rollout": {**settings["rollout"], "allocation": "uncertain"},
        "train": {"prompts_per_step": 2},
    }
    generate(make_config(dealt), tmp_path / "whole.jsonl", QUIET)
    output, write_group, written = tmp_path / "t.jsonl", TreeWriter.write_group, []

    def die(self: TreeWriter, group: Any) -> None:
        if len(written) == num_groups:
            raise RuntimeError("killed")
        written.append(group)
        write_group(self, group)

    with monkeypatch.context() as patch:
        patch.setattr(TreeWriter, "write_group", die)
        with pytest.raises(RuntimeError, match="killed"):
            generate(make_config(dealt), output, QUIET)
    with pytest.raises(UserError, match=r"other settings|differ"):
        generate(make_config({**dealt, "train": {"prompts_per_step": 3}}), output, QUIET, resume=True)
    generate(make_config(dealt), output, QUIET, resume=True)
    assert_same_trees(trees_in(output), trees_in(tmp_path / "whole.jsonl"))
    leaves = [line.count(b'"kept"') for line in trees_in(output).values()]
    steps = [sum(leaves[start : start + 4]) for start in range(0, len(leaves), 4)]
    rollout = make_config(dealt).rollout
    assert steps == [4 * rollout.num_leaves] * (len(leaves) // 4)
