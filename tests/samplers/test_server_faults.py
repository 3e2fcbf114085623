"""Servers that are slow, dead, back again, or say what is not so: each ends in the right turn or in one line."""

import asyncio
import math
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from treegrpo_cli.config import SamplerConfig
from treegrpo_cli.config.files import make_config
from treegrpo_cli.doctor import engines
from treegrpo_cli.errors import Problems, UserError
from treegrpo_cli.models.pretrained import load_causal_lm
from treegrpo_cli.run.preflight import check, training_questions
from treegrpo_cli.samplers import check_distinct, make_sampler, server, server_client, server_replica, server_weights
from treegrpo_cli.samplers.base import Trained
from treegrpo_cli.samplers.routing import NoReplicaError
from treegrpo_cli.samplers.server_client import ServerClient
from treegrpo_cli.types import Completion, SamplingParams

from tests.runs import small_run
from tests.samplers.lying_server import Answer, Handler, LyingServer, lying

PARAMS = SamplingParams(max_tokens=6)
CONTEXTS = [[1, 2, 3, number] for number in range(12)]
KEY = "a-key-that-nobody-may-see"


@pytest.fixture(scope="module")
def no_weights(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder without its weights: servers are not compared with it."""
    folder = tmp_path_factory.mktemp("no-weights") / "model"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "PAUSE_S", 0.01)
    monkeypatch.setattr(server_replica, "LOOK_S", 0.01)


@pytest.fixture(scope="module")
def kept(no_weights: Path) -> Iterator[tuple[LyingServer, Any]]:
    """A server and its sampler that many lies are told to."""
    with lying() as (server,):
        sampler = start(no_weights, server)
        yield server, sampler
        sampler.close()


@pytest.fixture
def one() -> Iterator[LyingServer]:
    with lying() as (only,):
        yield only


def start(
    model: Path, *servers: LyingServer, said: list[str] | None = None, trained: Trained | None = None, **settings: Any
) -> Any:
    config = SamplerConfig.model_validate(
        {"engine": "server", "urls": [each.url for each in servers], "server_wait_s": 20.0, **settings}
    )
    return make_sampler(
        config,
        str(model),
        dtype="float32",
        device="cpu",
        max_model_len=64,
        seed=0,
        log_path=None,
        say=(said if said is not None else []).append,
        trained=trained,
    )


async def ask(sampler: Any, number: int = len(CONTEXTS), params: SamplingParams = PARAMS) -> list[Completion]:
    asked = (sampler.sample(context, params, seed) for seed, context in enumerate(CONTEXTS[:number]))
    return list(await asyncio.gather(*asked))


def turns(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def status(code: int, message: str = "no") -> Callable[[Handler, Answer], bool]:
    def fault(handler: Handler, answer: Answer) -> bool:
        handler.reply({"error": {"message": message}}, code)
        return True

    return fault


def body(content: bytes, **headers: str) -> Callable[[Handler, Answer], bool]:
    def fault(handler: Handler, answer: Answer) -> bool:
        handler.reply(None, raw=content, **headers)
        return True

    return fault


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Handler, Answer], bool]:
    """Change the one choice."""

    def fault(handler: Handler, answer: Answer) -> bool:
        change(answer["choices"][0])
        return False

    return fault


def broken_off(handler: Handler, answer: Answer) -> bool:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True
    return True


def endless(handler: Handler, answer: Answer) -> bool:
    handler.send_response(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
    except OSError:
        handler.close_connection = True
    return True


def logprob(value: Any) -> Callable[[Handler, Answer], bool]:
    return changed(lambda choice: choice["logprobs"]["content"][0].update(logprob=value))


def token(value: Any) -> Callable[[Handler, Answer], bool]:
    return changed(
        lambda choice: (
            choice["token_ids"].__setitem__(0, value),
            choice["logprobs"]["content"][0].update(token_id=value),
        )
    )


@pytest.mark.parametrize("route", ["generate", "completions"])
def test_a_turn_is_what_the_server_sampled_and_told(no_weights: Path, one: LyingServer, route: str) -> None:
    one.has_generate = route == "generate"
    sampler = start(no_weights, one)
    (found,) = asyncio.run(ask(sampler, 1))
    sampler.close()
    asked = one.turns()[-1]
    words = asked.get("sampling_params", asked)
    tokens, logprobs, _ = one.turn(CONTEXTS[0], words)
    assert (found.token_ids, found.logprobs, found.finish_reason) == (tokens, logprobs, "length")
    assert (words["seed"], words["max_tokens"], words["top_k"], words["repetition_penalty"]) == (0, 6, 0, 1.0)
    assert (found.num_cached_tokens, found.policy_version) == (2, 0)


@pytest.mark.parametrize(
    "fault", [status(429), status(500), status(503), broken_off, changed(lambda c: c.update(finish_reason="abort"))]
)
def test_what_may_be_better_a_little_later_is_asked_again_from_the_same_seed(
    kept: tuple[LyingServer, Any], fault: Any
) -> None:
    one, sampler = kept
    expected = turns(asyncio.run(ask(sampler)))
    one.faults += [fault] * 3
    assert turns(asyncio.run(ask(sampler))) == expected


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (status(400, "too\nlong"), r"HTTP 400: too long$"),
        (status(401), r"HTTP 401: no \(\$VLLM_API_KEY holds the API key: it is not set here\)"),
        (status(404), r"HTTP 404: no"),
        (status(422), r"HTTP 422: no"),
        (status(307), r"redirects to ''"),
        (body(b"<html>"), r"it is no JSON \(.*\): '<html>'"),
        (body(b"{}", content_encoding="br"), r"encoded as 'br'"),
        (body(b"[]"), r"an object was expected"),
        (endless, r"longer than \d+ bytes"),
        (logprob(math.nan), r"it is no JSON|is no log-probability"),
        (logprob(None), r"None is no log-probability"),
        (logprob(0.5), r"above 0: start it with --logprobs-mode processed_logprobs"),
        (logprob(-9999.0), r"without a log-probability"),
        (changed(lambda c: c["logprobs"]["content"][0].update(top_logprobs=5)), r"no list of top log-probabilities: 5"),
        (token(10**6), r"token 1000000 is not of the model's \d+"),
        (token(-1), r"token -1 is not"),
        (token(True), r"token True is not"),
        (changed(lambda c: c["token_ids"].pop()), r"6 log-probabilities are not those of its 5 tokens"),
        (changed(lambda c: c.update(token_ids=None)), r"no list of token_ids"),
        (changed(lambda c: c.update(token_ids=[], logprobs={"content": []})), r"0 tokens, asked for 1 to 6"),
        (changed(lambda c: c.update(finish_reason="tired")), r"ended by 'tired'"),
        (changed(lambda c: c.update(stop_reason="never asked")), r"stopped at 'never asked'"),
    ],
)
def test_what_no_retry_mends_ends_the_run_in_one_line_that_names_the_server(
    kept: tuple[LyingServer, Any], fault: Any, line: str
) -> None:
    one, sampler = kept
    one.faults.append(fault)
    with pytest.raises(UserError, match=line) as caught:
        asyncio.run(ask(sampler, 1))
    assert str(caught.value).startswith(one.url)
    assert "\n" not in str(caught.value)


def test_one_of_three_that_dies_is_left_out_and_said_once(no_weights: Path) -> None:
    with lying(3) as servers:
        sampler = start(no_weights, servers[0])
        expected = turns(asyncio.run(ask(sampler)))
        sampler.close()
        lines: list[str] = []
        sampler = start(no_weights, *servers, said=lines, request_retries=0)
        servers[1].end()
        assert turns(asyncio.run(ask(sampler))) == expected
        sampler.close()
    (line,) = (line for line in lines if "is gone" in line)
    assert line.startswith(f"{servers[1].url} is gone (Connect")


def test_a_server_that_breaks_off_while_it_is_checked_ends_the_start_in_one_line(
    no_weights: Path, one: LyingServer
) -> None:
    one.faults += [broken_off] * 9
    with pytest.raises(UserError, match=rf"^{one.url}: RemoteProtocolError: peer closed"):
        start(no_weights, one)


def test_where_all_are_gone_the_run_ends_in_one_line_after_its_wait(no_weights: Path, one: LyingServer) -> None:
    sampler = start(no_weights, one, server_wait_s=0.3, request_retries=0)
    one.end()
    with pytest.raises(NoReplicaError, match=rf"no engine came back within 0\.3 s \({one.url}: ConnectError"):
        asyncio.run(ask(sampler, 1))
    sampler.close()


def test_a_server_that_does_not_answer_in_time_counts_as_gone(no_weights: Path) -> None:
    with lying(2) as servers:
        sampler = start(no_weights, *servers)
        expected = turns(asyncio.run(ask(sampler)))
        sampler.close()
        lines: list[str] = []
        sampler = start(no_weights, *servers, said=lines)
        for replica in sampler._servers:
            replica._client.timeout_s = 2.0
        servers[0].delay_s = 8.0
        assert turns(asyncio.run(ask(sampler))) == expected
        sampler.close()
    assert any(f"{servers[0].url} is gone (no answer to /inference/v1/generate within 2 s)" in line for line in lines)


def test_a_server_that_comes_back_serves_again(no_weights: Path, one: LyingServer) -> None:
    lines: list[str] = []
    sampler = start(no_weights, one, said=lines, request_retries=0)
    expected = turns(asyncio.run(ask(sampler)))
    port = one.port
    one.end()

    async def later() -> list[Completion]:
        asking = asyncio.ensure_future(ask(sampler))
        await asyncio.sleep(0.1)
        again.append(LyingServer(port))
        return await asking

    again: list[LyingServer] = []
    try:
        assert turns(asyncio.run(later())) == expected
    finally:
        sampler.close()
        again[0].end()
    assert lines[-1] == f"{one.url} is back"


def test_a_server_that_is_back_with_another_model_is_given_up(no_weights: Path, one: LyingServer) -> None:
    lines: list[str] = []
    sampler = start(no_weights, one, said=lines)
    one.weights = one.model = "another"
    with pytest.raises(NoReplicaError, match=r"is back with another model than it had"):
        asyncio.run(ask(sampler, 1))
    sampler.close()
    assert any("it serves 'another' now" in line for line in lines)


def test_no_more_turns_are_asked_for_at_once_than_the_engine_decodes(no_weights: Path, one: LyingServer) -> None:
    sampler = start(no_weights, one, max_num_seqs=3)
    one.delay_s, one.most_at_once = 0.1, 0
    asyncio.run(ask(sampler))
    sampler.close()
    assert one.most_at_once == 3


def test_a_turn_that_nobody_waits_for_ends_its_request(no_weights: Path, one: LyingServer) -> None:
    sampler = start(no_weights, one, max_num_seqs=1)
    one.delay_s = 0.05

    async def give_up() -> list[list[int]]:
        first = asyncio.ensure_future(sampler.sample(CONTEXTS[0], PARAMS, 0))
        await asyncio.sleep(0.02)
        first.cancel()
        return turns(await asyncio.wait_for(ask(sampler, 2), 10))

    assert len(asyncio.run(give_up())) == 2
    sampler.close()


def test_the_api_key_is_sent_and_never_shown(
    no_weights: Path, one: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.key = KEY
    with pytest.raises(UserError, match=r"HTTP 401: Unauthorized \(\$OUR_KEY holds the API key: it is not set here\)"):
        start(no_weights, one, api_key_env="OUR_KEY")
    monkeypatch.setenv("OUR_KEY", KEY)
    sampler = start(no_weights, one, api_key_env="OUR_KEY")
    one.faults.append(status(400, f"you sent {KEY}"))
    with pytest.raises(UserError, match=r"you sent \*\*\*") as caught:
        asyncio.run(ask(sampler, 1))
    sampler.close()
    assert KEY not in str(caught.value)
    monkeypatch.setenv("OUR_KEY", f"{KEY}\nx")
    with pytest.raises(UserError, match=r"\$OUR_KEY: an API key is of ASCII") as caught:
        start(no_weights, one, api_key_env="OUR_KEY")
    assert KEY not in str(caught.value)


def test_a_password_in_an_address_is_sent_and_never_shown(no_weights: Path, one: LyingServer) -> None:
    url = one.url.replace("http://", "http://me:secret@")
    sampler = start(no_weights, urls=[url])
    one.faults.append(status(400))
    with pytest.raises(UserError) as caught:
        asyncio.run(ask(sampler, 1))
    sampler.close()
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match=r"sampler\.urls: 'http://\*\*\*@.*' is named twice") as refused:
        make_config({"sampler": {"engine": "server", "urls": [url, f"{url}/"]}})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"is_processed": False}, r"not those of the distribution sampled from; start it with --logprobs-mode proc"),
        ({"max_model_len": 63}, r"holds 63 tokens, and the rollout needs 64: start it with --max-model-len 64"),
        ({"model": None}, r"/v1/models: the answer cannot be used: it lists no model"),
    ],
)
def test_a_server_that_cannot_serve_the_run_is_refused_before_the_first_tree(
    no_weights: Path, one: LyingServer, change: dict[str, Any], line: str
) -> None:
    vars(one).update(change)
    with pytest.raises(UserError, match=line) as caught:
        start(no_weights, one)
    assert str(caught.value).startswith(one.url)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"has_weight_routes": False}, r"cannot be trained: .* VLLM_SERVER_DEV_MODE=1"),
        ({"has_generate": False}, r"does not say which weights sample a turn, .* --enable-scale-out"),
    ],
)
def test_a_server_that_takes_no_weights_is_refused_for_training_alone(
    tiny_model_dir: Path, no_weights: Path, one: LyingServer, change: dict[str, Any], line: str
) -> None:
    vars(one).update(change)
    start(no_weights, one).close()
    with pytest.raises(UserError, match=line):
        start(tiny_model_dir, one, trained=Trained())


def test_a_server_that_still_loads_is_waited_for_and_that_is_said(no_weights: Path, one: LyingServer) -> None:
    port, lines = one.port, []
    one.end()
    again: list[LyingServer] = []
    timer = threading.Timer(0.3, lambda: again.append(LyingServer(port)))
    timer.start()
    try:
        start(no_weights, one, said=lines).close()
    finally:
        timer.join()
        again[0].end()
    assert lines[0].startswith(f"waiting for {one.url} (ConnectError")
    with pytest.raises(UserError, match=rf"^{one.url}: no answer within 0\.1 s"):
        start(no_weights, one, server_wait_s=0.1)


@pytest.fixture
def weights(tiny_model_dir: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_causal_lm(tiny_model_dir, torch.float32).state_dict()
    return found


@pytest.fixture
def uncompared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fakes compute no model."""
    compared: list[Any] = []
    monkeypatch.setattr(server.server_model, "compare", lambda found, *_: compared.append((sorted(found), _[-1])))
    return compared


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_server_that_was_started_again_has_the_current_weights_before_anything_of_it_is_used(
    tiny_model_dir: Path, tmp_path: Path, weights: dict[str, torch.Tensor], uncompared: list[Any]
) -> None:
    with lying(2) as servers:
        lines: list[str] = []
        folder = tmp_path / "weights"
        sampler = start(tiny_model_dir, *servers, said=lines, trained=Trained(), weights_dir=str(folder))
        for version in (1, 2):
            sampler.update_weights(weights.items(), version)
        assert [[path.name[-1] for path in each.loaded] for each in servers] == [["1", "2"]] * 2
        assert [path.name[-1] for path in folder.iterdir()] == ["2"]
        expected = asyncio.run(ask(sampler))
        servers[0].label, servers[0].weights = "default", "as started"  # as behind a restart that nobody saw
        found = asyncio.run(ask(sampler))
        until(lambda: lines[-1] == f"{servers[0].url} is back")
        assert turns(found) == turns(expected)
        assert {completion.policy_version for completion in found} == {2}
        assert [path.name[-1] for path in servers[0].loaded] == ["1", "2", "2"]
        assert any("has weights 'default', not 'treegrpo-" in line for line in lines)
        servers[1].label = "treegrpo-another-7"
        asyncio.run(ask(sampler))
        until(lambda: "is given up" in lines[-1])
        assert "another run trains it (treegrpo-another-7)" in lines[-1]
        sampler.close()
        assert not folder.exists()
        assert [len(names) for names, _ in uncompared] == [2, 2]  # as started, and with the first weights sent


def test_a_server_that_is_started_again_between_its_weights_and_their_name_gets_both_again(
    tiny_model_dir: Path, tmp_path: Path, one: LyingServer, weights: dict[str, torch.Tensor], uncompared: list[Any]
) -> None:
    sampler = start(tiny_model_dir, one, trained=Trained(), weights_dir=str(tmp_path / "weights"))
    one.restarts_behind_load = True
    sampler.update_weights(weights.items(), 1)
    found = asyncio.run(ask(sampler))
    sampler.close()
    assert {completion.policy_version for completion in found} == {1}
    assert (one.weights, one.label[-2:], len(one.loaded)) == ("1", "-1", 2)


def test_weights_that_a_server_cannot_read_end_the_run_in_a_line_that_names_the_setting(
    tiny_model_dir: Path, one: LyingServer, weights: dict[str, torch.Tensor], uncompared: list[Any], tmp_path: Path
) -> None:
    sampler = start(tiny_model_dir, one, trained=Trained(), weights_dir=str(tmp_path / "weights"))
    one.control = None  # type: ignore[attr-defined]
    (tmp_path / "weights").mkdir()
    original = sampler._folder.publish

    def hidden(*arguments: Any) -> Any:
        update = original(*arguments)
        (update.folder / "model-00001.safetensors").rename(tmp_path / "elsewhere")
        return update

    sampler._folder.publish = hidden
    with pytest.raises(UserError, match=r"could not load weights from .*sampler\.weights_dir .* must name a folder"):
        sampler.update_weights(weights.items(), 1)
    sampler.close()


def test_weights_stand_whole_under_their_name_or_not_at_all(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in several files, tied weights in each of their names; what a killed run left is gone, others' is kept."""
    monkeypatch.setattr(server_weights, "FILE_BYTES", 50_000)
    for is_own in (False, True):
        (tmp_path / "treegrpo-killed-7").mkdir(exist_ok=True)
        (tmp_path / "notes").mkdir(exist_ok=True)
        folder = server_weights.WeightsFolder(tmp_path, server_weights.Labels(), is_own=is_own)
        update = folder.publish(weights.items(), 3)
        files = sorted(update.folder.iterdir())
        assert len(files) > 2
        stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
        assert stored.keys() == weights.keys()
        assert "lm_head.weight" in stored
        assert all(torch.equal(stored[name], weights[name]) for name in stored)

        def interrupted() -> Iterator[tuple[str, torch.Tensor]]:
            yield next(iter(weights.items()))
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            folder.publish(interrupted(), 4)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == ({"notes"} if is_own else {"notes", "treegrpo-killed-7"})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"the servers' weights cannot be written"):
        server_weights.WeightsFolder(tmp_path / "file", server_weights.Labels(), is_own=True).publish([], 1)


def test_what_a_server_cannot_give_is_found_before_anything_starts(tiny_model_dir: Path, tmp_path: Path) -> None:
    for rollout, line in (({"entropies": True}, "a server gives no entropies"), ({}, "")):
        settings = small_run(
            tmp_path, tiny_model_dir, sampler={"engine": "server", "urls": ["http://127.0.0.1:9"]}, rollout=rollout
        )
        config = make_config(settings)
        if line:
            with pytest.raises(Problems, match=line):
                check(config, training_questions(config), trains=True)
        else:  # nobody is asked
            check(config, training_questions(config), trains=True)
    with pytest.raises(UserError, match=r"^rollout\.distinct_siblings: a server cannot leave out"):
        check_distinct(True, "server", "cpu")


def test_the_doctor_looks_at_servers_and_starts_no_engine(
    tiny_model_dir: Path, tmp_path: Path, one: LyingServer, uncompared: list[Any]
) -> None:
    one.has_weight_routes = False
    sampler = {"engine": "server", "urls": [one.url], "server_wait_s": 1.0}
    config = make_config(small_run(tmp_path, tiny_model_dir, sampler=sampler))

    def found() -> dict[str, str]:
        looked = engines.checks(
            tiny_model_dir, config, torch.device("cpu"), torch.float32, tmp_path / "log", lambda _: None
        )
        return {finding.subject: f"{finding.verdict}: {finding.said}" for check in looked for finding in check.find()}

    assert found()["server: turns"] == "right: vLLM servers"
    assert "cannot be trained" in found()["server: new weights"]
    one.end()
    assert all("wrong" in line and "no answer within 1 s" in line for line in found().values())


def test_what_a_server_cannot_do_is_refused_before_it_is_asked(no_weights: Path, one: LyingServer) -> None:
    for settings, line in (({"sleep": True}, r"^sampler\.sleep: "), ({"lora": "adapter"}, r"^sampler\.lora: ")):
        with pytest.raises(UserError, match=line):
            start(no_weights, one, **settings)
    assert not one.asked


def test_addresses_are_checked_when_settings_are_read() -> None:
    for urls, line in (
        ([], "there is none"),
        (["127.0.0.1:8000"], "is not an http"),
        (["ftp://host"], "is not an http"),
        (["http://"], "is not an http"),
        (["http://host:99999"], "is no address"),
        (["http://host/?key=1"], "has a query"),
        (["http://a b"], "is not an http"),
    ):
        with pytest.raises(ValueError, match=line):
            SamplerConfig(engine="server", urls=urls)
    with pytest.raises(ValueError, match=r'are for sampler\.engine = "server"'):
        SamplerConfig(urls=["http://host"])


def test_a_certificate_that_is_not_trusted_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = ServerClient("https://127.0.0.1:1", make_config({}).sampler)
    num_tries = 0

    async def distrust(*_: object) -> None:
        nonlocal num_tries
        num_tries += 1
        try:
            raise ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
        except ssl.SSLError as error:
            raise httpx.ConnectError(str(error)) from error

    monkeypatch.setattr(client, "_try", distrust)
    with pytest.raises(UserError, match=r"^https://127\.0\.0\.1:1: ConnectError: .*self-signed.* SSL_CERT_FILE"):
        asyncio.run(client.get("/health"))
    assert num_tries == 1
