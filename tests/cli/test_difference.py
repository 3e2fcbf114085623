"""Two nodes of a tree side by side: where they part, what differs, and what each is worth."""

import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from treegrpo_cli._core import describe_selection_rules
from treegrpo_cli.trees.difference import compared

from tests.command_line import refused, run
from tests.sample_trees import nodes_of, tree, write_lines


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    nodes = nodes_of([None, 0, 1, 1, 3, 0], [None, None, 1.0, None, 0.0, 0.5])
    ids = [[1, 2], [3], [5, 6, 7], [5, 6, 8], [9], [4]]
    texts = ["Which?", "look", "go to the old town", "go to the new town", "\x1b[31mend", "no"]
    for node, token_ids, text in zip(nodes, ids, texts, strict=True):
        node |= {"token_ids": token_ids, "text": text}
    nodes[3]["observation"] = "seen"
    return write_lines(tmp_path / "a.jsonl", [tree(nodes=nodes), tree("other")])


def shown(path: Path, *arguments: str) -> str:
    done = run("inspect-tree", path, "--prompt-id", "q", "--estimator", "parent", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_siblings_stand_side_by_side_from_where_their_tokens_part(parted: Path) -> None:
    lines = shown(parted, "--diff", "2", "4", "--width", "120").splitlines()
    assert lines[1] == "common path: the prompt and 1 turn, to node 1 · value 0.500 · 2 scored leaves"
    assert lines[2].startswith("their tokens part behind 2 equal tokens: 7 against 8;")
    [words] = [line for line in lines if "town" in line]
    assert [side.strip() for side in words.split("│")] == ["go to the ▸[-old-] town", "go to the ▸{+new+} town"]
    numbers = next(line for line in lines if line.startswith("node 2 "))
    assert "node 3 · depth 2 · value 0.000 · 1 scored leaf" in numbers.split("│")[1]
    assert "reward 1.000" in lines[lines.index(numbers)] + lines[lines.index(numbers) + 1]
    assert "│ → {+seen+}" in "\n".join(lines)
    assert "␛[31mend" in "\n".join(lines)


@pytest.mark.parametrize("width", [20, 45, 66, 67, 80, 400])
def test_a_narrow_screen_stacks_them_and_no_line_is_wider(parted: Path, width: int) -> None:
    lines = shown(parted, "--diff", "2", "4", "--width", str(width)).splitlines()
    assert max(map(cell_len, lines)) <= width
    assert any("│" in line for line in lines) == (width >= 67)
    assert "▸[-old-]" in "\n".join(lines)


def test_other_paths_part_at_other_tokens_and_the_order_is_the_users(parted: Path) -> None:
    assert "part at once: 4 against 3" in shown(parted, "--diff", "5", "2", "--width", "200")


def test_an_ancestor_does_not_part_from_what_follows_it(parted: Path) -> None:
    for pair in (("1", "4"), ("4", "1")):
        text = shown(parted, "--diff", *pair, "--width", "120")
        assert "node 1 is on the way to node 4, so they do not part" in text
        assert re.findall(r"(?m)^node (\d) · depth", text) == ["3", "4"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--prompt-id", "q", "--diff", "2", "2"], "both are the same node"),
        (["--prompt-id", "q", "--diff", "2", "9"], "has no node 9: its nodes are 0 to 5"),
        (["--diff", "1", "2"], "--diff needs one tree"),
        (["--prompt-id", "q", "--diff", "1", "2", "--full"], "--diff goes with"),
        (["--prompt-id", "q", "--diff", "1", "2", "--summary"], "--diff goes with"),
    ],
)
def test_what_cannot_be_compared_is_one_line(parted: Path, arguments: list[str], complaint: str) -> None:
    assert complaint in refused(run("inspect-tree", parted, "--estimator", "parent", *arguments))


def test_pieces_add_up_to_the_texts_and_common_ones_are_the_same() -> None:
    for one, other in (("a b  c", "a x  c d"), ("", "new"), ("a\n" * 3000, "a\nb" * 3000)):
        sides = compared(one, other)
        assert ["".join(piece.text for piece in side) for side in sides] == [one, other]
        common = [[piece.text for piece in side if piece.is_common] for side in sides]
        assert common[0] == common[1]


def test_selection_rules_are_listed_with_formulas_options_and_what_they_may_be() -> None:
    listed = run("rules").stdout
    for rule in describe_selection_rules():
        assert f"\n{rule['name']} " in f"\n{listed}"
        one = run("rules", rule["name"]).stdout
        assert rule["formula"] in one
        assert [
            name for name, option in rule["options"].items() if f"  {name}=" not in one or option["legal"] not in one
        ] == []
    assert "did you mean 'entropy'?" in refused(run("rules", "entropie"))


def test_discarded_trees_are_counted_by_themselves_in_a_summary(tmp_path: Path) -> None:
    kept, left = tree("a"), tree("b", meta={"discarded": True})
    both = run("inspect-tree", write_lines(tmp_path / "both.jsonl", [kept, left]), "--estimator", "parent", "--summary")
    alone = run("inspect-tree", write_lines(tmp_path / "one.jsonl", [kept]), "--estimator", "parent", "--summary")
    said = "discarded, not trained on and left out here: 1 tree of 1 prompt"
    assert [line for line in both.stdout.splitlines() if line != said] == alone.stdout.splitlines()
    assert said in both.stdout.splitlines()
