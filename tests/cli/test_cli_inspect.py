"""`treegrpo` as a shell sees it: output, one line of complaint, exit codes, and what it loads."""

import json
import os
import pydoc
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import treegrpo_cli
from treegrpo_cli._core import estimators

from tests.command_line import HEAVY, refused, run, run_process
from tests.forests import ESTIMATORS
from tests.sample_trees import full_tree, tree, vector_trees, write_lines


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "trees.jsonl", vector_trees())


def test_help_is_quick_because_it_loads_little() -> None:
    code = (
        "import sys; sys.argv = ['treegrpo', '--help']\n"
        "from treegrpo_cli.cli.app import main\n"
        "try: main()\n"
        f"finally: print('loaded', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "loaded []"
    assert "inspect-tree" in done.stdout


def test_importing_the_package_loads_none_of_its_rooms() -> None:
    code = "import sys, treegrpo_cli; print([n for n in sys.modules if n.startswith('treegrpo_cli.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_public_names_are_what_they_say_whatever_was_imported_before() -> None:
    code = (
        "import treegrpo_cli.cli.inspect, treegrpo_cli.trees.scoring, treegrpo_cli as t\n"
        "print([name for name in t.__all__ if not getattr(t, name)], callable(t.score))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[] True"
    with pytest.raises(AttributeError, match="nonsense"):
        treegrpo_cli.nonsense  # noqa: B018


def test_the_package_shows_its_public_names_and_explains_them() -> None:
    assert set(treegrpo_cli.__all__) <= set(dir(treegrpo_cli))
    help_text = pydoc.render_doc(treegrpo_cli, renderer=pydoc.plaintext)
    for name in treegrpo_cli.__all__:
        assert name in help_text
        assert name.startswith("__") or getattr(treegrpo_cli, name).__doc__


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"treegrpo {treegrpo_cli.__version__}\n"


def test_the_published_trees_are_scored_as_published(vectors: Path) -> None:
    done = run("inspect-tree", vectors, "--estimator", "tree-grpo", "--option", "eps=0", "--format", "json")
    first, second = map(json.loads, done.stdout.splitlines())
    leaves = [node["advantage"] for node in first["nodes"] if node["reward"] is not None]
    signs = [1 if node["reward"] else -1 for node in first["nodes"] if node["reward"] is not None]
    assert leaves == pytest.approx([sign * 1.848285 for sign in signs], abs=5e-7)
    assert [node["advantage"] for node in second["nodes"][1:]] == pytest.approx([-1.642521, 1.642521], abs=5e-7)
    assert first["scoring"]["estimator"] == "tree-grpo"
    assert first["scoring"]["options"]["eps"] == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_scored_lines_read_back_and_scored_again_are_the_same_bytes(estimator: str, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [*vector_trees(), full_tree(), full_tree() | {"tree_id": 1}])
    once = run("inspect-tree", source, "--estimator", estimator, "--format", "json").stdout
    again = run("inspect-tree", "-", "--estimator", estimator, "--format", "json", stdin=once.encode()).stdout
    kept = run("inspect-tree", "-", "--format", "json", stdin=once.encode()).stdout
    assert once
    assert once == again == kept


def test_a_scoring_is_kept_unless_another_is_asked_for(vectors: Path) -> None:
    scored = run("inspect-tree", vectors, "--estimator", "parent", "--format", "json").stdout.encode()
    names = {
        json.loads(line)["scoring"]["estimator"]
        for asked in ([], ["--estimator", "sibling"])
        for line in run("inspect-tree", "-", "--format", "json", *asked, stdin=scored).stdout.splitlines()[:1]
    }
    assert names == {"parent", "sibling"}


def test_trees_are_chosen_after_they_were_scored_together(vectors: Path) -> None:
    every = run("inspect-tree", vectors, "--format", "json").stdout.splitlines()
    chosen = run("inspect-tree", vectors, "--format", "json", "--prompt-id", "vectors", "--tree-id", "1")
    assert chosen.stdout.splitlines() == every[1:]


def test_a_limit_shows_the_first_trees_as_they_stand_among_all(vectors: Path) -> None:
    every = run("inspect-tree", vectors, "--format", "json").stdout.splitlines()
    assert run("inspect-tree", vectors, "--format", "json", "--limit", "1").stdout.splitlines() == every[:1]
    assert "1 tree · 10 nodes" in run("inspect-tree", vectors, "--summary", "--limit", "1").stdout


def test_the_drawing_is_plain_and_80_columns_wide_where_there_is_no_terminal(vectors: Path) -> None:
    done = run("inspect-tree", vectors)
    assert max(map(len, done.stdout.splitlines())) == 80
    assert "\x1b" not in done.stdout
    assert max(map(len, run("inspect-tree", vectors, COLUMNS="100").stdout.splitlines())) == 100


def test_colour_follows_the_sign_of_the_advantage(vectors: Path) -> None:
    shown = run("inspect-tree", vectors, FORCE_COLOR="1", TERM="xterm").stdout
    lines = [line for line in shown.splitlines() if "done" in line]
    signs = [re.sub(r"\x1b\[\d+m", "", line).split()[-1][0] for line in lines]
    assert {"+", "-"} <= set(signs)
    blue, orange = (["\x1b[94m+" in line for line in lines], ["\x1b[91m-" in line for line in lines])
    assert (blue, orange) == ([sign == "+" for sign in signs], [sign == "-" for sign in signs])


def test_a_terminal_that_cannot_show_the_signs_shows_others(vectors: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run_process("inspect-tree", vectors, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "done: node 4" in done.stdout


def test_the_summary_is_drawn_or_one_object(vectors: Path) -> None:
    assert "2 trees · 13 nodes" in run("inspect-tree", vectors, "--summary").stdout
    assert json.loads(run("inspect-tree", vectors, "--summary", "--format", "json").stdout)["num_nodes"] == 13


def test_nested_lines_hold_a_root(vectors: Path) -> None:
    [first, _] = run("inspect-tree", vectors, "--nested").stdout.splitlines()
    assert [child["id"] for child in json.loads(first)["root"]["children"]] == [1, 2, 3]


def test_one_tree_a_prompt_under_tree_grpo_warns_once(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [tree(f"p{number}") for number in range(3)])
    done = run("inspect-tree", source)
    [line] = done.stderr.splitlines()
    assert "single tree" in line
    assert done.returncode == 0


def test_trees_in_front_of_a_broken_line_are_shown(vectors: Path) -> None:
    with open(vectors, "a") as file:
        file.write('{"schema": "treegrpo.tree/1", "promp')
    done = run("inspect-tree", vectors, "--format", "json")
    assert f"{vectors}:3: " in refused(done)
    assert len(done.stdout.splitlines()) == 2


@pytest.fixture
def a_run(tmp_path: Path) -> Path:
    """The directory of a run of eleven steps, a prompt each."""
    trees = tmp_path / "run" / "trees"
    trees.mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    for step in (0, 2, 10):
        write_lines(trees / f"step-{step:05d}.jsonl", [tree(f"p{step}", 0), tree(f"p{step}", 1)])
    write_lines(trees / "later.jsonl", [tree("later", 0), tree("later", 1)])
    return tmp_path / "run"


def prompts(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [json.loads(line)["prompt_id"] for line in done.stdout.splitlines()]


def test_a_run_and_its_trees_are_read_step_by_step_and_files_as_they_are_named(a_run: Path, vectors: Path) -> None:
    whole = [name for name in ("p0", "p2", "p10", "later") for _ in range(2)]
    assert prompts(run("inspect-tree", a_run, "--format", "json")) == whole
    assert prompts(run("inspect-tree", a_run / "trees", "--format", "json")) == whole
    both = run("inspect-tree", vectors, a_run, "--format", "json")
    assert prompts(both) == ["vectors"] * 2 + whole
    assert "5 prompts" in run("inspect-tree", vectors, a_run, "--summary").stdout


def test_a_step_of_a_run_is_chosen_by_its_number(a_run: Path, vectors: Path) -> None:
    assert prompts(run("inspect-tree", a_run, "--step", "10", "--format", "json")) == ["p10"] * 2
    assert "no trees of step 3; there are 0 to 10" in refused(run("inspect-tree", a_run, "--step", "3"))
    assert "--step chooses" in refused(run("inspect-tree", vectors, "--step", "3"))
    (a_run / "empty").mkdir()
    assert "holds no tree files" in refused(run("inspect-tree", a_run / "empty"))


def test_a_drawing_in_full_holds_every_word_and_the_ids_of_nodes(tmp_path: Path) -> None:
    nodes = [{"id": 0, "parent": None, "reward": None, "text": "Which\n  town?"}]
    words = " ".join(f"word{number}" for number in range(200))
    nodes.append({"id": 1, "parent": 0, "reward": 1.0, "text": words, "observation": "\x1b[31mseen\n\nlast"})
    nodes.append({"id": 2, "parent": 0, "reward": 0.0, "text": "x" * 300})
    source = write_lines(tmp_path / "a.jsonl", [tree(nodes=nodes)])
    lines = run("inspect-tree", source, "--full", "--estimator", "parent").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    shown = "\n".join(lines)
    assert [word for word in words.split() if word not in shown] == []
    assert sum(line.count("x") for line in lines if "node 2" not in line and "word" not in line) == 300
    assert "│     town?" in lines
    assert "→ ␛[31mseen" in shown
    assert "node 1" in shown
    assert "\x1b" not in shown


def test_a_long_chain_is_not_folded_in_full(tmp_path: Path) -> None:
    nodes = [{"id": place, "parent": place - 1 if place else None, "reward": None} for place in range(100)]
    nodes[-1]["reward"] = 1.0
    source = write_lines(tmp_path / "a.jsonl", [tree(nodes=nodes)])
    assert "⋮" in run("inspect-tree", source, "--estimator", "parent").stdout
    assert "⋮" not in run("inspect-tree", source, "--estimator", "parent", "--full").stdout


def test_an_advantage_is_split_into_terms_that_add_up(vectors: Path) -> None:
    scoring = ["--estimator", "tree-grpo", "--option", "eps=0"]
    shown = run("inspect-tree", vectors, *scoring, "--tree-id", "0", "--width", "200", "--explain", "4").stdout
    # A1 has reward 1: (1 - 1/2) / 0.534522 among 8 leaves, (1 - 1/2) / 0.547723 among the tree's 6
    assert "A(l) = inter * N over the prompt's leaves of R(l) + intra" in shown
    assert "inter: (1.000 - 0.500) / 0.535 = +0.935 (prompt: 8 values, mean 0.500, std 0.535)" in shown
    assert "intra: (1.000 - 0.500) / 0.548 = +0.913 (tree: 6 values, mean 0.500, std 0.548)" in shown
    assert "node 4: +0.935 inter +0.913 intra = +1.848" in shown


def test_an_explanation_says_which_tokens_take_the_advantage(tmp_path: Path) -> None:
    tokens = {"token_ids": [1, 2, 3], "sampled": [[0, 2]]}
    nodes = [{"id": 0, "parent": None, "reward": None}, {"id": 1, "parent": 0, "reward": None} | tokens]
    nodes += [{"id": place, "parent": 1, "reward": place % 2} | tokens for place in (2, 3)]
    nodes += [{"id": 4, "parent": 0, "reward": None}]
    source = write_lines(tmp_path / "a.jsonl", [tree(nodes=nodes)])
    shown = run("inspect-tree", source, "--estimator", "parent", "--width", "200", "--explain", "1").stdout
    assert "2 sampled tokens of the node, in 2 rows, take the node's advantage:" in shown
    assert "leaf 2, reward 0.000: 2 of the row's 4 sampled tokens" in shown
    assert "node 1: 0.000 parent = 0.000" in shown
    root = run("inspect-tree", source, "--estimator", "parent", "--width", "200", "--explain", "0").stdout
    assert "the root is the prompt" in root
    assert (
        "no scored leaf below"
        in run("inspect-tree", source, "--estimator", "parent", "--width", "200", "--explain", "4").stdout
    )


def test_an_explanation_tells_where_the_file_says_something_else(vectors: Path, tmp_path: Path) -> None:
    lines = run("inspect-tree", vectors, "--estimator", "grpo", "--format", "json").stdout.splitlines()
    (tmp_path / "alone.jsonl").write_text(lines[1] + "\n")
    assert (
        "the file says +0.935"
        in run("inspect-tree", tmp_path / "alone.jsonl", "--width", "200", "--explain", "2").stdout
    )
    assert (
        "the file says"
        not in run(
            "inspect-tree", vectors, "--estimator", "grpo", "--tree-id", "1", "--width", "200", "--explain", "2"
        ).stdout
    )


def test_estimators_are_listed_with_formulas_options_and_what_they_may_be() -> None:
    names = estimators()
    listed = run("estimators").stdout
    assert [name for name in names if f"\n{name} " not in f"\n{listed}"] == []
    assert "A(n) = V(n) - V(parent of n)" in listed
    for name in names:
        known = treegrpo_cli.estimators()[name]
        shown = run("estimators", name).stdout
        assert known["formula"] in shown
        for option, about in known["options"].items():
            [line] = [line for line in shown.splitlines() if line.startswith(f"  {option}=")]
            assert f"={about['default']} " in line
            assert about["legal"] in line
    assert "did you mean 'sibling'?" in refused(run("estimators", "siblings"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--explain", "1"], "--explain needs one tree"),
        (["--tree-id", "0", "--width", "200", "--explain", "99"], "has no node 99: its nodes are 0 to 9"),
        (
            ["--tree-id", "0", "--width", "200", "--explain", "1", "--format", "json"],
            "--explain cannot be combined with --format json",
        ),
        (["--format", "nope"], "Invalid value for '--format': 'nope' is not "),
        (["--full", "--summary"], "--full cannot be combined with --format json"),
        (["--option", "ddof=0"], "--option needs --estimator"),
        (["--estimator", "tree-grop"], "tree-grop"),
        (["--estimator", "grpo", "--option", "ddf=0"], "ddf"),
        (["--estimator", "grpo", "--option", "ddof"], "name=value"),
        (["--estimator", "grpo", "--option", "ddof=2"], "ddof"),
        (["--estimator", "grpo", "--option", "eps=nan"], "eps"),
        (["--estimator", "grpo", "--option", "eps=-1"], "eps"),
        (["--prompt-id", "nobody"], "'nobody'"),
        (["--tree-id", "7"], "tree_id 7"),
        (["--tree-id", "x"], "--tree-id"),
        (["--format", "xml"], "xml"),
        (["--format", "tree", "--nested"], "--nested"),
        (["--summary", "--nested"], "--nested"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(vectors: Path, arguments: list[str], complaint: str) -> None:
    done = run("inspect-tree", vectors, *arguments)
    assert complaint in refused(done)
    assert done.stdout == ""


def test_bernoulli_names_the_tree_and_line_whose_reward_is_no_probability(tmp_path: Path) -> None:
    nodes = [{"id": 0, "parent": None, "reward": None}] + [{"id": i, "parent": 0, "reward": i} for i in (1, 2)]
    source = write_lines(tmp_path / "a.jsonl", [tree("q", 0), tree("q", 1, nodes)])
    done = run("inspect-tree", source, "--estimator", "grpo", "--option", "scale=bernoulli")
    assert f"{source}:2: tree 1, node 2: " in refused(done)


def test_a_file_name_with_control_characters_is_shown_on_one_line(tmp_path: Path) -> None:
    assert "\\x1b" in refused(run("inspect-tree", tmp_path / "a\x1b[31m\nb.jsonl"))


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [tree(f"p{number}", 0) for number in range(3000)])
    for output in ("tree", "json"):
        command = [sys.executable, "-m", "treegrpo_cli", "inspect-tree", str(source), "--format", output]
        command += ["--estimator", "grpo"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["--format", "json"], ["--format", "tree"], ["--summary"]])
def test_a_full_standard_output_is_one_line_and_exit_code_2(vectors: Path, arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = run_process("inspect-tree", vectors, *arguments, stdout=full, stderr=subprocess.PIPE)
    assert refused(done) == "treegrpo: standard output: No space left on device"


def test_ctrl_c_is_one_line_and_exit_code_130() -> None:
    command = [
        sys.executable,
        "-m",
        "treegrpo_cli",
        "inspect-tree",
        "-",
        "--estimator",
        "grpo",
        "--format",
        "json",
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        lines = b"".join(json.dumps(tree(f"p{number}")).encode() + b"\n" for number in range(100))
        process.stdin.write(lines)
        process.stdin.flush()
        process.stdout.readline()  # it is at work, and waits for more
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b"treegrpo: stopped\n"
    assert process.returncode == 130


def test_no_command_shows_the_help() -> None:
    bare = run()
    assert (bare.returncode, bare.stdout) == (0, run("--help").stdout)
