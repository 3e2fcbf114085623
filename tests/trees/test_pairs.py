"""Preference pairs of siblings: those of the definition, in rows that TRL's DPO trainer tokenises to their tokens."""

import json
import warnings
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treegrpo_cli import UserError, preference_pairs
from treegrpo_cli.models.pretrained import load_tokenizer

from tests.command_line import refused, run
from tests.sample_trees import tree, write_lines

Fields = dict[str, Any]


@st.composite
def groups(draw: st.DrawFn) -> list[Fields]:
    """Up to three trees of a prompt whose turns often say the same."""
    group = []
    for tree_id in range(draw(st.integers(1, 3))):
        parents = [None, *(draw(st.integers(max(0, n - 3), n)) for n in range(draw(st.integers(0, 9))))]
        nodes = []
        for place, parent in enumerate(parents):
            reward = None if place in parents or not place else draw(st.sampled_from([None, 0.0, 0.5, 1.0]))
            text = draw(st.sampled_from("abc")) if place else "Q"
            nodes.append({"id": place, "parent": parent, "reward": reward, "text": text, "observation": "-"})
        group.append(tree("q", tree_id, nodes))
    return group


def value_of(fields: Fields, node: Fields, which: str) -> float | None:
    children = [value_of(fields, other, which) for other in fields["nodes"] if other["parent"] == node["id"]]
    if not children:
        return node["reward"]  # type: ignore[no-any-return]
    if which == "max":
        return max((value for value in children if value is not None), default=None)
    rewards = [other["reward"] for other in fields["nodes"] if node["id"] in path_of(fields, other["id"])]
    scored = [reward for reward in rewards if reward is not None]
    return sum(scored) / len(scored) if scored else None


def path_of(fields: Fields, node: int) -> list[int]:
    parent = fields["nodes"][node]["parent"]
    return [*([] if parent is None else path_of(fields, parent)), node]


def reference_pairs(group: list[Fields], min_gap: float, which: str, value: str, roots: str) -> list[Fields]:
    """Every two siblings, one by one."""
    states: dict[Any, list[tuple[Fields, Fields, float]]] = {}
    for fields in group:
        for node in fields["nodes"]:
            if node["parent"] is not None and (v := value_of(fields, node, value)) is not None:
                alone = None if node["parent"] == 0 and roots == "shared" else fields["tree_id"]
                states.setdefault((alone, node["parent"]), []).append((fields, node, v))
    rows = []
    for turns in states.values():
        found = []
        for (i, chosen), (j, rejected) in permutations(enumerate(turns), 2):
            gap = chosen[2] - rejected[2]
            if gap > 1e-8 and gap >= min_gap - 1e-8 and chosen[1]["text"] != rejected[1]["text"]:
                found.append(((-gap, -chosen[2], i, j), chosen, rejected))
        found.sort(key=lambda pair: pair[0] if which == "best-worst" else pair[0][1:])
        for _, chosen, rejected in found[: 1 if which == "best-worst" else None]:
            above = path_of(chosen[0], chosen[1]["parent"])
            context = [chosen[0]["nodes"][place] for place in above]
            row = {"prompt": "".join(n["text"] + n["observation"] for n in context), "prompt_id": "q"}
            for name, (fields, node, v) in (("chosen", chosen), ("rejected", rejected)):
                row |= {name: node["text"], f"{name}_tree": fields["tree_id"]}
                row |= {f"{name}_node": node["id"], f"{name}_value": pytest.approx(v)}
            rows.append(row)
    return rows


@settings(deadline=None)
@given(
    groups(),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from(["best-worst", "all"]),
    st.sampled_from(["leaf-mean", "max"]),
    st.sampled_from(["shared", "tree"]),
)
def test_pairs_are_those_of_the_definition(
    group: list[Fields], min_gap: float, which: str, value: str, roots: str
) -> None:
    rows = preference_pairs(group, min_gap=min_gap, which=which, value=value, roots=roots)
    expected = reference_pairs(group, min_gap, which, value, roots)
    order = ("chosen_tree", "chosen_node", "rejected_tree", "rejected_node")
    by_nodes = [sorted(some, key=lambda row: [row[name] for name in order]) for some in (rows, expected)]
    assert by_nodes[0] == by_nodes[1]


def token_tree(tokenizer: Any) -> Fields:
    """Two turns at the prompt, two behind what a tool said to the first of them, one of which ends with an EOS."""

    def node(place: int, parent: int | None, said: str, seen: str = "", reward: float | None = None) -> Fields:
        ids, observed = tokenizer.encode(said, add_special_tokens=False), []
        if seen:
            observed = tokenizer.encode(seen, add_special_tokens=False)
        fields = {"id": place, "parent": parent, "reward": reward, "token_ids": ids + observed, "text": said}
        return fields | {"observation": seen, "sampled": [[0, len(ids)]] if parent is not None else []}

    nodes = [
        node(0, None, "Which town is the capital of Portugal?\n"),
        node(1, 0, "<search>Portugal</search>", "\n<information>Lisbon is a town.</information>\n"),
        node(2, 0, "<answer>Rome</answer>", reward=0.0),
        node(3, 1, f"<answer>Lisbon</answer>{tokenizer.eos_token}", reward=1.0),
        node(4, 1, "<answer>Paris</answer>", reward=0.0),
    ]
    return tree("q", 0, nodes)


@pytest.fixture(scope="module")
def dpo() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.trainer import dpo_trainer
    return dpo_trainer


def test_trl_takes_the_rows_and_finds_the_tokens_of_the_tree(tiny_model_dir: Path, dpo: Any) -> None:
    from datasets import Dataset

    tokenizer = load_tokenizer(tiny_model_dir)
    fields = token_tree(tokenizer)
    rows = preference_pairs(fields, tokenizer, which="all")
    assert [(row["chosen_node"], row["rejected_node"]) for row in rows] == [(1, 2), (3, 4)]
    trainer = SimpleNamespace(_tokenizer=tokenizer)
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    prepared = dpo.DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train")
    ids = [node["token_ids"] for node in fields["nodes"]]
    for row, theirs, context in zip(rows, prepared, (ids[0], ids[0] + ids[1]), strict=True):
        assert theirs["prompt_ids"] == row["prompt_ids"] == context
        for name in ("chosen", "rejected"):
            node = fields["nodes"][row[f"{name}_node"]]
            sampled = node["token_ids"][: node["sampled"][0][1]]
            assert row[f"{name}_ids"] == sampled
            eos = [] if sampled[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
            assert theirs[f"{name}_ids"] == sampled + eos
    batch = dpo.DataCollatorForPreference(pad_token_id=0)(rows)
    assert batch["input_ids"].shape[0] == 2 * len(rows), "token ids go into TRL's collator as they are"
    assert batch["completion_mask"][1].sum() == len(rows[1]["chosen_ids"])


def test_the_command_line_writes_rows_with_the_tokenizer_of_the_files_model(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    fields = {**token_tree(tokenizer), "meta": {"model": str(tiny_model_dir)}}
    file = write_lines(tmp_path / "trees.jsonl", [fields])
    done = run("inspect-tree", file, "--format", "pairs", "--option", "which=all")
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == preference_pairs(fields, tokenizer, which="all")
    wide = run("inspect-tree", file, "--format", "pairs", "--option", "min_gap=0.75", "--option", "tokenizer=none")
    [row] = map(json.loads, wide.stdout.splitlines())
    assert (row["chosen"], row["rejected"]) == (fields["nodes"][3]["text"], "<answer>Paris</answer>")
    assert "prompt_ids" not in row


def test_tokens_that_texts_do_not_give_again_are_told(tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    fields = {**token_tree(tokenizer), "meta": {"model": str(tiny_model_dir)}}
    letters = [token for letter in "town" for token in tokenizer.encode(letter, add_special_tokens=False)]
    if tokenizer.encode("town", add_special_tokens=False) == letters:
        letters = [*letters[:1], 3]
    fields["nodes"][4] |= {"token_ids": letters, "sampled": [[0, len(letters)]]}
    done = run("inspect-tree", write_lines(tmp_path / "t.jsonl", [fields]), "--format", "pairs")
    assert "warning: 1 of 2 pairs have texts of which the tokenizer makes other tokens" in done.stderr
    assert json.loads(done.stdout.splitlines()[1])["rejected_ids"] == letters


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "t.jsonl", [tree()])
    pairs = ["inspect-tree", file, "--format", "pairs"]
    assert "node 0 has no 'text', of which pairs are made" in refused(run(*pairs))
    assert "option min_gap: got 'much', expected a number" in refused(run(*pairs, "--option", "min_gap=much"))
    assert "option which: got 'some', expected one of best-worst, all" in refused(run(*pairs, "--option", "which=some"))
    assert "no option 'scale'; there are min_gap" in refused(run(*pairs, "--option", "scale=std"))
    assert "value" in refused(run(*pairs, "--option", "value=median"))
    assert "--format pairs goes with --option" in refused(run(*pairs, "--estimator", "grpo"))
    nowhere = refused(run(*pairs, "--option", "tokenizer=/nowhere"))
    assert "name another by --option tokenizer=DIR" in nowhere
    no_entropies = refused(run(*pairs, "--option", "tokenizer=none", "--option", "value=child-softmax"))
    assert f"{file}:1: tree 0, node 1: value child-softmax needs an entropy" in no_entropies
    with pytest.raises(UserError, match="min_gap: got -1"):
        preference_pairs(tree(), min_gap=-1)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("min_gap=-1", "option min_gap: got '-1'"),
        ("which=none", "option which: got 'none'"),
        ("nope=1", "no option 'nope'"),
        ("value=median", "option value: got "),
    ],
)
def test_options_are_checked_before_a_tokenizer_is_opened(option: str, complaint: str, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "t.jsonl", [tree()])
    asked = ["--option", "tokenizer=/nowhere", "--option", option]
    assert refused(run("inspect-tree", file, "--format", "pairs", *asked)).startswith(f"treegrpo: pairs: {complaint}")
