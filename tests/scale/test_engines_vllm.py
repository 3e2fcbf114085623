"""Two real vLLM engines as Ray actors: trees do not depend on how many there are, or on one that dies."""

from pathlib import Path

import pytest
from treegrpo_cli import read_trees
from treegrpo_cli.config.files import make_config
from treegrpo_cli.run.generate import generate
from treegrpo_cli.run.progress import Reporter
from treegrpo_cli.scale import engines as engines_module
from treegrpo_cli.scale.engines import open_engines
from treegrpo_cli.scale.placement import place

from tests.runs import small_run
from tests.scale.engine_runs import SharedEngines, kill_after


@pytest.mark.usefixtures("vllm_on_cpu", "ray_cluster")
def test_trees_are_the_same_with_two_engines_with_one_killed_among_them_and_with_the_one_that_is_left(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "MAX_RESTARTS", 0)
    sampler = {"engine": "vllm", "kv_cache_bytes": 16 << 20}
    settings = small_run(tmp_path, tiny_model_dir, scale={"engines": 2}, sampler=sampler)
    settings["environment"]["options"]["instructions"] = "Think, search, and answer in one word. " * 3  # whole blocks
    config, said = make_config(settings), []  # type: ignore[var-annotated]
    engines = open_engines(config, place(config), tmp_path / "engine.log", said.append, None)
    trees, hits = {}, []
    for number, name in enumerate(("two", "killed", "one")):
        undo = kill_after(engines, 12, place=0) if name == "killed" else None
        assert len(engines.live) == (1 if name == "one" else 2)
        generate(config, tmp_path / f"{name}.jsonl", Reporter(quiet=True), parts=SharedEngines(engines))
        hits.append(engines.prefix_cache_hit_ratio())
        if undo:
            undo()
        trees[name] = [
            {field: value for field, value in node.items() if field != "logprobs"}
            for tree in sorted(read_trees(tmp_path / f"{name}.jsonl"), key=lambda tree: (tree.prompt_id, tree.tree_id))
            for node in tree.nodes
        ]
        assert number == 2 or len(engines.live) == 2 - number
    engines.close()
    assert len(trees["two"]) > 20
    assert "token_ids" in trees["two"][0]
    assert trees["two"] == trees["killed"] == trees["one"]
    assert all(hit is not None and hit > 0.1 for hit in hits), hits  # a tree's turns share their prompt
    assert [(tmp_path / f"engine-{number}.log").stat().st_size > 0 for number in (0, 1)] == [True, True]
    assert [line for line in said if "gone" in line or "given up" in line] == [
        "engine 0 is gone (its process died): its turns are sampled again elsewhere",
        f"engine 0 is given up: it died 1 times; its log is {tmp_path / 'engine-0.log'}",
    ]
