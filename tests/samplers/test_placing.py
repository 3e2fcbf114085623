"""Where a request goes, against the definition written down naively."""

from fractions import Fraction
from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st
from treegrpo_cli.samplers.placing import NUM_POINTS, Placing


def hashed(text: str) -> int:
    return int(blake2b(text.encode(), digest_size=8).hexdigest(), 16)


def around(key: int, num_replicas: int) -> list[int]:
    """The replicas in the order in which a walk around the circle, from the prompt's place on, meets them first."""
    distance = {}
    for replica in range(num_replicas):
        points = [hashed(f"{replica}/{point}") for point in range(NUM_POINTS)]
        distance[replica] = min((point - hashed(f"prompt {key}")) % 2**64 for point in points)
    return sorted(distance, key=distance.__getitem__)


class NaivePlacing:
    """Everything is looked up in the list of all requests so far; nothing is kept beside it."""

    def __init__(self, num_replicas: int) -> None:
        self.num_replicas = num_replicas
        self.requests: list[dict[str, int]] = []

    def place(self, key: int, context: int, max_tokens: int, live: list[int]) -> int:
        def load(replica: int) -> int:
            return sum(each["tokens"] for each in self.requests if each["at"] == replica and each["runs"])

        def tokens(replica: int) -> int:
            before = [each["context"] for each in self.requests if (each["key"], each["at"]) == (key, replica)]
            return max_tokens + max(0, context - max(before, default=0))

        homes = [each["home"] for each in self.requests if each["key"] == key]
        home = homes[-1] if homes and homes[-1] in live else min(live, key=lambda each: (load(each), each))
        order = [home] + [each for each in around(key, self.num_replicas) if each in live and each != home]
        for replica in order:
            mean = Fraction(sum(map(load, live)) + tokens(replica), len(live))
            if load(replica) <= Fraction(125, 100) * mean:
                break
        request = {"key": key, "context": context, "home": home, "at": replica, "runs": 1}
        self.requests.append({**request, "tokens": tokens(replica)})
        return replica


requests = st.tuples(st.integers(0, 3), st.integers(1, 300), st.integers(1, 100), st.integers(1, 2**5 - 1))


@given(st.integers(1, 5), st.lists(st.one_of(requests, st.integers(0, 20)), max_size=40))
def test_placing_is_the_definition_of_bounded_loads(num_replicas: int, calls: list[tuple[int, ...] | int]) -> None:
    fast, slow = Placing(num_replicas), NaivePlacing(num_replicas)
    placed = []
    for call in calls:
        if isinstance(call, int):
            running = [place for place, each in enumerate(slow.requests) if each["runs"]]
            if running:
                ended = running[call % len(running)]
                slow.requests[ended]["runs"] = 0
                fast.end(placed[ended])
        else:
            key, context, max_tokens, mask = call
            live = [replica for replica in range(num_replicas) if mask >> replica & 1] or [0]
            placed.append(fast.place(key, context, max_tokens, live))
            assert placed[-1].replica == slow.place(key, context, max_tokens, live)
            assert placed[-1].tokens == slow.requests[-1]["tokens"]


def test_a_prompt_keeps_to_its_replica_while_that_has_no_more_to_do_than_others() -> None:
    placing = Placing(2)
    assert placing.place(7, 100, 10, [0, 1]).replica == 0
    assert placing.place(8, 100, 10, [0, 1]).replica == 1
    assert placing.place(9, 50, 10, [0, 1]).replica == 0
    assert [placing.place(key, 100, 10, [0, 1]).replica for key in (8, 7, 8)] == [1, 0, 1]


def test_what_was_read_of_a_prompt_does_not_count_again_where_prefixes_are_kept() -> None:
    placing, forgetful = Placing(1), Placing(1, keeps_prefixes=False)
    assert [placing.place(0, tokens, 10, [0]).tokens for tokens in (100, 130, 120)] == [110, 40, 10]
    assert [forgetful.place(0, tokens, 10, [0]).tokens for tokens in (100, 130, 120)] == [110, 140, 130]


def test_no_replica_has_more_than_the_bound_and_one_request_beside_the_mean() -> None:
    placing = Placing(4)
    for number in range(400):
        placing.place(number % 3, 50, 16, [0, 1, 2, 3])
        assert max(placing.loads) <= 1.25 * sum(placing.loads) / 4 + 66


def test_what_spills_over_of_a_prompt_goes_to_one_other_replica() -> None:
    placing = Placing(6)
    home = placing.place(5, 40, 10, list(range(6)))
    for _ in range(3):
        spilled = placing.place(5, 40, 10, list(range(6)))
        assert spilled.replica == next(replica for replica in around(5, 6) if replica != home.replica)
        placing.end(spilled)
    placing.end(home)
    assert placing.place(5, 40, 10, list(range(6))).replica == home.replica


def test_no_more_than_so_many_prompts_are_remembered() -> None:
    placing = Placing(3, max_keys=100)
    for key in range(10_000):
        placing.end(placing.place(key, 50, 10, [0, 1, 2]))
    assert placing.num_keys == 100
    assert placing.loads == [0, 0, 0]


def test_what_a_replica_has_read_is_forgotten_with_its_cache() -> None:
    placing = Placing(2)
    placing.end(placing.place(1, 100, 10, [0, 1]))
    placing.forget(0)
    assert placing.place(1, 100, 10, [0, 1]).tokens == 110
    placing.forget()
    assert placing.num_keys == 0
