"""Retrievers: BM25 over a file, the protocol over loopback, and servers that are slow, failing or lying."""

import asyncio
import base64
import contextlib
import gc
import gzip
import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from treegrpo_cli.config import EnvironmentConfig
from treegrpo_cli.envs import check_environment, load_environment, step_with_retries
from treegrpo_cli.envs.bm25 import BM25Retriever
from treegrpo_cli.envs.http_retriever import HTTPRetriever
from treegrpo_cli.envs.retrieval import RetrievalServer
from treegrpo_cli.envs.retriever import Passage
from treegrpo_cli.envs.tools import ToolState
from treegrpo_cli.errors import FileError, ToolError, UserError
from treegrpo_cli.types import Action, ToolCall

PASSAGES = [
    ("Lima", "Lima is the capital of Peru."),
    ("Peru", "Peru is a country; the currency of Peru is the sol."),
    ("Quito", "Quito is the capital of Ecuador."),
    ("Sol", "The sol is a currency."),
]


def bm25(query: str, topk: int = 3) -> list[Passage]:
    return BM25Retriever(PASSAGES).retrieve_one(query, topk)


def ask(url: str, *queries: str, topk: int = 3) -> list[list[Passage]]:
    return asyncio.run(HTTPRetriever(url).retrieve(queries, topk))


def expected_relevance(query: str, number: int) -> float:
    """BM25 as Lucene has it: rarity ln(1 + (N - n + ½) / (n + ½)), times the damped count of the word."""
    documents = [re.findall(r"\w+", f"{title} {text}".lower()) for title, text in PASSAGES]
    mean_length = sum(map(len, documents)) / len(documents)
    counts, relevance = Counter(documents[number]), 0.0
    for word in query.split():
        containing = sum(word in document for document in documents)
        rarity = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
        damping = 1.5 * (1 - 0.75 + 0.75 * len(documents[number]) / mean_length)
        relevance += rarity * counts[word] / (counts[word] + damping)
    return relevance


def test_relevance_is_that_of_the_formula() -> None:
    query = "currency of peru"
    found = bm25(query, topk=4)
    assert [p.title for p in found] == ["Peru", "Lima", "Sol", "Quito"]
    by_title = {title: number for number, (title, _) in enumerate(PASSAGES)}
    for passage in found:
        assert passage.relevance == pytest.approx(
            expected_relevance("currency of peru", by_title[passage.title]), rel=1e-5
        )


def test_equally_relevant_passages_keep_the_order_of_the_corpus() -> None:
    retriever = BM25Retriever([(f"t{i}", "twice twice" if i % 2 else "twice once") for i in range(400)])
    expected = [f"t{i}" for i in (*range(1, 400, 2), *range(0, 200, 2))]
    assert [p.title for p in retriever.retrieve_one("twice", 300)] == expected


def test_passages_that_share_no_word_are_not_found() -> None:
    assert [p.title for p in bm25("ecuador")] == ["Quito"]
    assert bm25("zanzibar") == []
    assert bm25("") == []
    assert bm25("?!") == []


def test_the_order_of_the_hash_seed_changes_nothing(tmp_path: Path) -> None:
    code = (
        "from treegrpo_cli.envs.bm25 import BM25Retriever\n"
        f"print(BM25Retriever({PASSAGES!r}).retrieve_one('the capital of the country sol', 4))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert "Quito" in outputs.pop()


def write_corpus(path: Path) -> str:
    rows = [{"id": str(i), "contents": f"{title}\n{text}"} for i, (title, text) in enumerate(PASSAGES)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_corpus_holds_contents_or_title_and_text(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"title": t, "text": x}) for t, x in PASSAGES))
    a, b = (BM25Retriever.from_file(tmp_path / name).retrieve_one("sol", 2) for name in ("a.jsonl", "b.jsonl"))
    assert a == b == bm25("sol", 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"contents": "a\\nb"}\n{"text": "x"}', r":2: a passage needs `contents`, or `title` and `text`"),
        ('{"contents": 3}', r":1: a passage needs"),
        ('{"contents"', r":1: not JSON"),
        ("", "holds no passages"),
        ('{"contents": "\\n"}', "holds no passages"),
    ],
)
def test_a_broken_corpus_is_named_with_the_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.jsonl").write_text(content)
    with pytest.raises(FileError, match=message):
        BM25Retriever.from_file(tmp_path / "c.jsonl")


@contextlib.contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with running(RetrievalServer(BM25Retriever(PASSAGES))) as url:
        yield url


def test_over_http_the_same_passages_come_back(served: str) -> None:
    peru, ecuador, nothing = ask(served, "currency of peru", "ecuador", "zanzibar", topk=2)
    assert peru == bm25("currency of peru", 2)
    assert ecuador == bm25("ecuador", 2)
    assert nothing == []


def test_one_client_serves_one_event_loop_after_another(served: str) -> None:
    retriever = HTTPRetriever(f"{served}/retrieve")
    first, second = (asyncio.run(retriever.retrieve(["sol"], 1)) for _ in range(2))
    assert first == second == [bm25("sol", 1)]


def test_many_ask_at_once(served: str) -> None:
    retriever = HTTPRetriever(served)

    async def ask_many() -> list[list[list[Passage]]]:
        return await asyncio.gather(*(retriever.retrieve([t], 1) for t, _ in PASSAGES * 20))

    assert [found[0][0].title for found in asyncio.run(ask_many())] == [bm25(t)[0].title for t, _ in PASSAGES] * 20


def test_without_scores_the_documents_stand_alone(served: str) -> None:
    answer = httpx.post(f"{served}/retrieve", json={"queries": ["ecuador"]}, trust_env=False)
    assert answer.json() == {"result": [[{"contents": "Quito\nQuito is the capital of Ecuador."}]]}


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/other", b"{}", 404),
        ("/retrieve", b"{", 400),
        ("/retrieve", b"[]", 400),
        ("/retrieve", b'{"queries": "text"}', 400),
        ("/retrieve", b'{"queries": [1]}', 400),
        ("/retrieve", b'{"queries": ["a"], "topk": -1}', 400),
        ("/retrieve", b'{"queries": ["a"], "topk": "3"}', 400),
    ],
)
def test_the_server_refuses_what_the_protocol_does_not_know(
    served: str, path: str, content: bytes, status: int
) -> None:
    answer = httpx.post(f"{served}{path}", content=content, trust_env=False)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_the_module_serves_a_corpus_file(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    command = [sys.executable, "-m", "treegrpo_cli.envs.retrieval", "--corpus", corpus, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert ask(line.split(" at ")[1].strip(), "ecuador") == [bm25("ecuador")]
        finally:
            process.terminate()


def test_the_module_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "treegrpo_cli.envs.retrieval", "--corpus", str(tmp_path / "gone.jsonl")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert re.fullmatch(r"error: .*gone\.jsonl: No such file or directory\n", ran.stderr)


Respond = Callable[[BaseHTTPRequestHandler], None]


def answering(respond: Respond) -> ThreadingHTTPServer:
    """A server that reads a request and lets `respond` do what it likes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            respond(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def hit(**replaced: Any) -> bytes:
    passage = {"document": {"contents": "Lima\nIt is."}, "score": 1.5, **replaced}
    kept = {key: value for key, value in passage.items() if value is not None}
    return json.dumps({"result": [[kept]]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>Bad gateway</html>", "the answer is not JSON .*<html>"),
        (b"", "the answer is not JSON"),
        (b"\xff\xfe", "the answer is not JSON"),
        (b'{"result": [', "the answer is not JSON"),
        (b'{"result": ' + b"[" * 100_000, "the answer is not JSON"),
        (b"[]", "has no list `result`"),
        (b'{"results": []}', "has no list `result`"),
        (b'{"result": {}}', "has no list `result`"),
        (b'{"result": []}', "0 results for 1 queries"),
        (b'{"result": [[], []]}', "2 results for 1 queries"),
        (b'{"result": ["Lima"]}', "a query's result must be a list, got 'Lima'"),
        (b'{"result": [["Lima"]]}', "must have `document` and `score`"),
        (hit(document=None), "must have `document` and `score`"),
        (hit(score=None), "must have `document` and `score`"),
        (hit(document={"content": "x"}), "a passage needs `contents`"),
        (hit(document={"contents": 3}), "a passage needs `contents`"),
        (hit(document="Lima"), "a passage needs `contents`"),
        (hit(score=math.nan), "the answer is not JSON"),
        (hit(score="NaN"), "a score must be a finite number, got 'NaN'"),
        (hit(score=True), "a score must be a finite number, got True"),
        (b'{"result": [[{"document": {"contents": "x"}, "score": 1e999}]]}', "not JSON|finite number"),
    ],
)
def test_a_lying_server_is_a_tool_error(body: bytes, message: str) -> None:
    with (
        running(answering(lambda handler: send(handler, body))) as url,
        pytest.raises(ToolError, match=message) as error,
    ):
        ask(url, "lima")
    assert str(error.value).startswith(f"retriever {url}/retrieve: ")
    assert len(str(error.value)) < 400


def test_more_passages_than_asked_for_are_cut() -> None:
    many = json.dumps({"result": [[{"document": {"contents": "a\nb"}, "score": 1}] * 9]}).encode()
    with running(answering(lambda handler: send(handler, many))) as url:
        assert len(ask(url, "lima", topk=2)[0]) == 2


@pytest.mark.parametrize(("status", "shown"), [(500, "HTTP 500: 'oh'"), (404, "HTTP 404"), (302, "HTTP 302")])
def test_a_failing_server_is_a_tool_error(status: int, shown: str) -> None:
    with (
        running(answering(lambda handler: send(handler, b"oh", status))) as url,
        pytest.raises(ToolError, match=shown),
    ):
        ask(url, "lima")


def test_a_closed_connection_is_a_tool_error() -> None:
    with (
        running(answering(lambda handler: handler.connection.shutdown(socket.SHUT_RDWR))) as url,
        pytest.raises(ToolError, match=r"RemoteProtocolError|ReadError"),
    ):
        ask(url, "lima")


Headers = dict[str, str]


def send_stream(handler: BaseHTTPRequestHandler, headers: Headers, parts: Iterable[bytes]) -> None:
    """Send a body of unknown length, until the other side has had enough."""
    handler.send_response(200)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        for part in parts:
            handler.wfile.write(part)


ZEROS = gzip.compress(bytes(64 * 2**20))
GZIP = {"Content-Encoding": "gzip"}


@pytest.mark.parametrize(
    ("headers", "parts", "message"),
    [
        ({}, itertools.repeat(b" " * 2**16), r"the answer is longer than 4194304 bytes \(max_response_bytes\)"),
        (GZIP, [ZEROS], "the answer is longer than 4194304 bytes"),
        (GZIP, itertools.repeat(gzip.compress(b"")), "the answer's gzip goes on behind its end"),
        (GZIP, [gzip.compress(hit()), b"x"], "the answer's gzip goes on behind its end"),
        (GZIP, [gzip.compress(hit())[:-9]], "the answer's gzip is cut short"),
        (GZIP, [hit()], "the answer is no gzip"),
        ({"Content-Encoding": "gzip, gzip"}, [gzip.compress(ZEROS)], "encoded as 'gzip, gzip', which was not asked"),
        ({"Content-Encoding": "deflate"}, [b"x"], "encoded as 'deflate', which was not asked for"),
        ({"Content-Encoding": "br"}, [b"x"], "encoded as 'br', which was not asked for"),
    ],
)
def test_an_answer_has_a_limit_behind_its_compression_too(
    headers: Headers, parts: Iterable[bytes], message: str
) -> None:
    with running(answering(lambda handler: send_stream(handler, headers, parts))) as url:
        tracemalloc.start()
        with pytest.raises(ToolError, match=message):
            ask(url, "lima")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 32 * 2**20


def test_a_compressed_answer_is_read_and_the_limit_is_a_setting() -> None:
    with running(answering(lambda handler: send_stream(handler, GZIP, [gzip.compress(hit())]))) as url:
        [[passage]] = ask(url, "lima")
        assert passage == Passage("Lima", "It is.", 1.5)
        environment, config = search_environment(url, max_response_bytes=len(hit()) - 1, tool_retries=0)
        with pytest.raises(ToolError, match=f"longer than {len(hit()) - 1} bytes"):
            asyncio.run(
                step_with_retries(environment, ToolState(), ACTION, config.model_copy(update={"tool_retries": 0}))
            )
    with pytest.raises(UserError, match=r"environment\.options\.max_response_bytes: must be 1 or more, got 0"):
        search_environment(url, max_response_bytes=0)


@pytest.mark.parametrize("charset", ["zlib_codec", "rot13", "idna", "hex", "undefined", "nothing"])
@pytest.mark.parametrize("status", [200, 500])
def test_a_charset_is_not_looked_at(charset: str, status: int) -> None:
    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", f"application/json; charset={charset}")
        handler.end_headers()
        handler.wfile.write(hit())

    with running(answering(respond)) as url:
        if status == 200:
            assert ask(url, "lima") == [[Passage("Lima", "It is.", 1.5)]]
        else:
            with pytest.raises(ToolError, match="HTTP 500"):
                ask(url, "lima")


def test_connections_are_kept_from_call_to_call_and_from_loop_to_loop() -> None:
    accepted: set[Any] = set()
    server = RetrievalServer(BM25Retriever(PASSAGES))
    accept = server.get_request
    server.get_request = lambda: accepted.add(pair := accept()) or pair  # type: ignore[method-assign, func-returns-value]
    with running(server) as url:
        retriever = HTTPRetriever(url)
        for _ in range(3):
            for _ in range(4):
                asyncio.run(retriever.retrieve(["sol"], 1))
        asyncio.run(retriever.close())
    assert len(accepted) == 1


def test_a_kept_connection_that_the_server_has_closed_is_replaced() -> None:
    requests = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        requests.append(handler.client_address)
        handler.protocol_version = "HTTP/1.1"
        if len(requests) == 2:  # as if it had timed out while this one was under way
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        send(handler, hit())
        handler.close_connection = False

    retriever_answers = []
    with running(answering(respond)) as url:
        retriever = HTTPRetriever(url)
        for _ in range(2):
            retriever_answers += asyncio.run(retriever.retrieve(["x"], 1))
    assert retriever_answers == [[Passage("Lima", "It is.", 1.5)]] * 2
    assert requests[0] == requests[1] != requests[2]


def test_a_closed_retriever_gives_its_thread_back(served: str) -> None:
    retriever = HTTPRetriever(served)
    asyncio.run(retriever.retrieve(["sol"], 1))
    thread = retriever._client._open.thread  # type: ignore[union-attr]
    assert not thread.loop.is_closed()
    del retriever
    gc.collect()
    deadline = time.monotonic() + 20
    while not thread.loop.is_closed() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert thread.loop.is_closed()


@pytest.mark.parametrize("status", [200, 500])
def test_a_password_in_an_address_is_sent_and_never_shown(status: int) -> None:
    sent = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        sent.append(handler.headers["Authorization"])
        send(handler, b"oh", status)

    with running(answering(respond)) as url:
        with pytest.raises(ToolError) as failed:
            ask(url.replace("://", "://user:s3cret@") + "/x?key=s3cret#s3cret", "lima")
        assert str(failed.value).startswith(f"retriever {url}/x: ")
    assert "s3cret" not in str(failed.value)
    assert sent == [f"Basic {base64.b64encode(b'user:s3cret').decode()}"]


@pytest.mark.parametrize(
    "url",
    ["http://u:s3cret@host:99999", "ftp://u:s3cret@host", "http://u:s3cret@", "http://u:s3/cret@host:x", "u:s3cret@x"],
)
def test_a_password_in_a_wrong_address_is_not_shown(url: str) -> None:
    with pytest.raises(UserError) as error:
        HTTPRetriever(url)
    assert "s3cret" not in str(error.value)


def search_environment(url: str, **settings: Any) -> tuple[Any, EnvironmentConfig]:
    limits = {name: settings.pop(name) for name in ("max_response_bytes",) if name in settings}
    config = EnvironmentConfig(name="search", options={"retriever_url": url, **limits}, **settings)
    return load_environment(config), config


ACTION = Action("<search>lima</search>", (ToolCall("search", {"query": "lima"}),))


def test_a_slow_server_runs_into_the_timeout() -> None:
    ended = threading.Event()
    with running(answering(lambda handler: ended.wait(20) and None)) as url:
        environment, config = search_environment(url, tool_timeout_s=0.1, tool_retries=0)
        with pytest.raises(ToolError, match=r"no answer within 0\.1 s"):
            asyncio.run(step_with_retries(environment, ToolState(), ACTION, config))
        ended.set()


def test_a_server_that_recovers_is_asked_again() -> None:
    calls: list[int] = []

    def respond(handler: BaseHTTPRequestHandler) -> None:
        calls.append(1)
        send(handler, hit(), 500 if len(calls) < 3 else 200)

    with running(answering(respond)) as url:
        environment, config = search_environment(url, tool_retries=2)
        _, result = asyncio.run(step_with_retries(environment, ToolState(), ACTION, config))
    assert result.observation[0]["content"] == "Doc 1(Title: Lima) It is."
    assert len(calls) == 3


def test_a_retriever_that_is_down_at_the_start_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        environment, _ = search_environment(url)
        with pytest.raises(UserError, match=f"retriever {url}/retrieve: ConnectError.*is it running"):
            asyncio.run(check_environment(environment, timeout_s=60))


def test_a_retriever_that_is_up_passes_the_check(served: str) -> None:
    environment, _ = search_environment(served)
    asyncio.run(check_environment(environment, timeout_s=60))


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host/x", "http://", "http://[::1", "http://a\nb", "http://host:99999"]
)
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(UserError, match=r"environment\.options\.retriever_url: "):
        search_environment(url)
