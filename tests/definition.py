"""A model, a scored forest, settings -> the loss of one optimizer step, from its definition row by row.

Each scored leaf's row goes alone through the library's model. Kept for ever beside the trainer.
"""

from collections.abc import Iterator

import numpy as np
import torch
from treegrpo_cli._core import Forest, Scores
from treegrpo_cli.config import Config
from treegrpo_cli.train.resolved_loss import resolved_loss


def turns_of_rows(forest: Forest, leaves: Iterator[int]) -> list[list[int]]:
    """The node of each token of each leaf's row."""
    start = forest.columns()["token_start"].astype(int)
    return [
        [node for node in forest.path(leaf).tolist() for _ in range(start[node + 1] - start[node])] for leaf in leaves
    ]


def by_definition(
    model: torch.nn.Module,
    ref: torch.nn.Module,
    forest: Forest,
    scores: Scores,
    config: Config,
    old: torch.nn.Module | None = None,
) -> dict[str, torch.Tensor]:
    """-(1/Z) sum of w [v min(rho A, c A) - beta k3 + eta H], leaf by leaf in full length, and the weighted means.

    `old` is the policy before the step's first update, to which the ratio is and whose difference to the sampler v
    makes up for; without it the sampler's log-probabilities are the old ones.
    """
    loss = resolved_loss(config.loss, torch.float32)
    rows = forest.chain_rows(scores, loss.prefix_weight)
    names = ("objective", "kl", "entropy", "mismatch", "importance", "truncated", "weight")
    sums = {name: torch.zeros((), dtype=torch.float64) for name in names}
    for row, turns in enumerate(turns_of_rows(forest, rows.leaf.tolist())):
        t = slice(int(rows.row_start[row]), int(rows.row_start[row + 1]))
        ids = torch.from_numpy(rows.input_ids[t].astype(np.int64))
        policy = torch.log_softmax(model(input_ids=ids[None]).logits[0].double() / config.rollout.temperature, -1)
        with torch.no_grad():
            frozen, before = (
                torch.log_softmax(other(input_ids=ids[None]).logits[0].double() / config.rollout.temperature, -1)
                for other in (ref, old or ref)
            )
        sampled = [k for k in range(1, len(ids)) if rows.loss_mask[t][k]]
        segment = {"token": range(len(ids)), "turn": turns, "sequence": [0] * len(ids)}[loss.ratio]
        sampling = {k: float(rows.logprobs[t][k]) for k in sampled}
        old_logprobs = sampling if old is None else {k: before[k - 1, ids[k]] for k in sampled}
        log_ratio = {k: policy[k - 1, ids[k]] - old_logprobs[k] for k in sampled}
        for k in sampled:
            weight, advantage = float(rows.weights[t][k]), float(rows.advantages[t][k])
            if loss.denominator == "sequence-mean":
                weight /= len(sampled)
            rho = torch.exp(torch.stack([log_ratio[j] for j in sampled if segment[j] == segment[k]]).mean())
            value = torch.minimum(rho * advantage, rho.clamp(1 - loss.clip_low, 1 + loss.clip_high) * advantage)
            if loss.dual_clip is not None and advantage < 0:
                value = torch.maximum(value, torch.tensor(loss.dual_clip * advantage))
            importance = torch.as_tensor(old_logprobs[k] - sampling[k]).exp()
            bound = torch.inf if loss.importance_clip is None else loss.importance_clip
            if loss.importance_clip is not None:
                value = importance.clamp(max=bound) * value
            d = frozen[k - 1, ids[k]] - policy[k - 1, ids[k]]
            kl = torch.exp(d) - d - 1
            entropy = -(policy[k - 1].exp() * policy[k - 1]).sum()
            objective = value - loss.kl_coef * (rho * kl if loss.kl_ratio else kl) + loss.entropy_coef * entropy
            mismatch = abs(log_ratio[k] if old is None else old_logprobs[k] - sampling[k])
            terms = (objective, kl, entropy, mismatch, importance.clamp(max=bound), float(importance > bound))
            for name, term in zip(names, (*terms, 1.0), strict=True):
                sums[name] = sums[name] + weight * term
    num_rows = len(rows.leaf)
    z = {"token-mean": sums["weight"], "sequence-mean": num_rows, "constant": loss.denominator_constant * num_rows}
    means = {name: sums[name] / sums["weight"] for name in names[1:-1]}
    return {"loss": -sums["objective"] / z[loss.denominator]} | means
