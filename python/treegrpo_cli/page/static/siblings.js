/*
Siblings side by side, from the token where they part: what each was worth, and how many leaves say so.

  treegrpo.branchingPoints(p)    those of a prompt (the chosen one), the widest gap between different turns first
  treegrpo.stepBranch(by)        goes to the next (1) or the one before (-1) of them
*/
(() => {
  const { nodes, prompts, trees, state, statuses, el, number, scored, visible } = treegrpo;
  const SHOWN = 24;
  const CONTEXT = 48;
  const MAX_DOTS = 60;
  let all = false;

  const found = new Map();
  treegrpo.branchingPoints = (prompt = state.prompt) => {
    const key = `${prompt} ${state.scoring}`;
    if (!found.has(key)) found.set(key, foundPoints(prompt));
    return found.get(key);
  };
  const foundPoints = (prompt) => {
    const points = [];
    prompts[prompt].trees.forEach((t, place) => {
      for (let i = trees[t].start; i < trees[t].end; i++) {
        const isFirst = nodes.parent[i] >= 0 || place === 0;
        if (isFirst && treegrpo.isBranching(i)) points.push({ node: i, gap: treegrpo.gapOf(i) });
      }
    });
    return points.sort((a, b) => b.gap - a.gap || a.node - b.node);
  };
  treegrpo.stepBranch = (by) => {
    const points = treegrpo.branchingPoints();
    if (!points.length) return;
    const now = points.findIndex((point) => isSame(point.node, state.branch));
    const next = points[(now + by + points.length) % points.length];
    treegrpo.select({ node: treegrpo.siblingsUnder(next.node)[0], branch: next.node });
  };
  /* The roots of a prompt's trees are one state. */
  const isSame = (a, b) =>
    a === b || (a >= 0 && b >= 0 && nodes.parent[a] < 0 && nodes.parent[b] < 0 && trees[nodes.tree[a]].prompt === trees[nodes.tree[b]].prompt);

  const rewardsBelow = (i) => {
    const end = trees[nodes.tree[i]].end;
    const inside = new Set([i]);
    const rewards = [];
    for (let k = i; k < end; k++) {
      if (k !== i && !inside.has(nodes.parent[k])) continue;
      inside.add(k);
      if (!Number.isNaN(nodes.reward[k])) rewards.push(nodes.reward[k]);
    }
    return rewards.sort((a, b) => a - b);
  };

  const strip = (rewards) => {
    const { low, high } = treegrpo.scale("value");
    const dots = rewards.slice(0, MAX_DOTS).map((reward, k) => {
      const same = rewards.slice(0, k).filter((other) => other === reward).length;
      const dot = el("i", {});
      dot.style.left = `calc(${((reward - low) / (high - low || 1)) * 100}% + ${(reward === high ? -1 : 1) * Math.min(same, 12) * 5}px)`;
      return dot;
    });
    return el("span", { class: "strip", "aria-hidden": "true" }, ...dots);
  };
  const ofLeaves = (n) => `${n.toLocaleString("en")} ${n === 1 ? "leaf" : "leaves"}`;
  const spread = (rewards) => {
    if (!rewards.length) return "no scored leaf";
    const [low, high] = [rewards[0], rewards[rewards.length - 1]];
    const range = low === high ? `${rewards.length > 1 ? "all " : ""}${number(low)}` : `${number(low)} to ${number(high)}`;
    return `${ofLeaves(rewards.length)}: ${range}`;
  };
  const idOf = (i) => i - trees[nodes.tree[i]].start;
  const nameOf = (i, severalTrees) => (severalTrees ? `tree ${trees[nodes.tree[i]].tree_id}, node ${idOf(i)}` : `node ${idOf(i)}`);

  const unitText = (i, aligned, part, at) => {
    if (at >= part.size) return null;
    return aligned.byTokens ? treegrpo.tokenText1(i, part.units[at]) : part.units[at].trim();
  };
  const together = (siblings, k) => {
    const turn = treegrpo.turnsOf(state.branch).find(({ members }) => members[0] === k);
    if (!turn || turn.members.length < 2) return null;
    const { value, leaves } = treegrpo.worthOf(siblings, turn);
    return el("span", { class: "together" }, `${turn.members.length} times the same: together ${number(value)} on ${ofLeaves(leaves)}`);
  };
  const parting = (i, aligned, part) => {
    if (part.repeats >= 0) return el("span", { class: "parting same" }, `repeats sibling ${part.repeats + 1}`);
    if (part.nearest < 0) return el("span", { class: "parting same" }, "every sibling is the same");
    const text = unitText(i, aligned, part, part.at);
    if (text === null) return el("span", { class: "parting" }, `ends where sibling ${part.nearest + 1} goes on`);
    const tokens = aligned.byTokens ? treegrpo.tokens(i) : null;
    const sampled = tokens?.sampled(part.at) ?? true;
    const chance = tokens && sampled && !Number.isNaN(tokens.logprobs[part.at]) ? `, probability ${treegrpo.percent(tokens.logprobs[part.at])}` : "";
    return el("span", { class: "parting" }, sampled ? "parts with " : "same turn, other observation: ",
      el("q", { dir: "auto" }, visible(text.trim() || text) || "∅"), el("span", { class: "chance" }, chance));
  };

  const card = (siblings, i, k, aligned, severalTrees) => {
    const part = aligned.parts[k];
    const rewards = rewardsBelow(i);
    const status = statuses[nodes.status[i]];
    return el("div", { class: `sibling-head${i === state.node ? " chosen" : ""}` },
      el("button", { class: "sibling-name", "aria-pressed": String(i === state.node), onclick: () => treegrpo.select({ node: i, branch: state.branch }) },
        el("b", {}, `sibling ${k + 1}`), ` ${nameOf(i, severalTrees)}`, status === "open" ? "" : ` · ${status.replace("_", " ")}`),
      el("div", { class: "worth" },
        el("span", { class: "worth-value" }, el("small", {}, "value "), number(treegrpo.column("value")[i])),
        el("span", {}, el("small", {}, "advantage "), scored(treegrpo.column("advantage")[i], treegrpo.scale("advantage").max))),
      el("div", { class: "evidence" }, strip(rewards), el("span", {}, spread(rewards))),
      parting(i, aligned, part),
      together(siblings, k));
  };

  const units = (i, aligned, part, first, end) =>
    aligned.byTokens ? treegrpo.tokenSpans(i, first, end) : [el("span", { class: "plain-words" }, treegrpo.written(part.units.slice(first, end).join("")))];

  const marked = (i, aligned, part) => {
    const [unit, ...blank] = units(i, aligned, part, part.at, part.at + 1);
    return [el("mark", { class: "parting-token", title: `here it parts from sibling ${part.nearest + 1}` }, unit), ...blank];
  };
  const lastSampled = (i) => {
    const tokens = treegrpo.tokens(i);
    let end = tokens.size;
    while (end > 0 && !tokens.sampled(end - 1)) end--;
    return end;
  };

  const column = (i, k, aligned) => {
    const part = aligned.parts[k];
    if (part.repeats >= 0)
      return el("div", { class: "sibling-turn repeats" }, `the same tokens as sibling ${part.repeats + 1}`);
    const end = aligned.byTokens ? Math.max(lastSampled(i), aligned.common) : part.size;
    const along = Math.min(part.at, end);
    const element = el("div", { class: "sibling-turn token-line" });
    if (along > aligned.common)
      element.append(el("span", { class: "along", title: `as sibling ${part.nearest + 1} up to here` }, ...units(i, aligned, part, aligned.common, along)));
    if (part.nearest >= 0 && part.at < end)
      element.append(...marked(i, aligned, part));
    element.append(...units(i, aligned, part, part.nearest >= 0 && part.at < end ? part.at + 1 : along, end));
    if (end < part.size) element.append(observed(i, aligned, part, end));
    return element;
  };
  const observed = (i, aligned, part, end) => {
    const inside = part.nearest >= 0 && part.at >= end && part.at < part.size;
    const body = inside
      ? [...units(i, aligned, part, end, part.at), ...marked(i, aligned, part), ...units(i, aligned, part, part.at + 1, part.size)]
      : units(i, aligned, part, end, part.size);
    return el("details", { class: "observed", open: inside },
      el("summary", {}, `observation, ${part.size - end} tokens, masked`), el("div", {}, ...body));
  };

  const prefix = (siblings, aligned, differ) => {
    const [first] = siblings;
    const part = aligned.parts[0];
    const size = aligned.common;
    const noun = aligned.byTokens ? "token" : "word";
    if (!differ) {
      const end = aligned.byTokens ? lastSampled(first) : size;
      return el("div", { class: "prefix token-line" }, el("span", { class: "prefix-note" }, "all of them are the same turn: "),
        ...units(first, aligned, part, 0, end));
    }
    if (!size) return el("div", { class: "prefix" }, el("span", { class: "prefix-note" }, `they part at their first ${noun}`));
    const start = Math.max(0, size - CONTEXT);
    return el("div", { class: "prefix token-line" },
      el("span", { class: "prefix-note" }, `all begin with the same ${size.toLocaleString("en")} ${noun}${size === 1 ? "" : "s"}${start ? ", the last of them " : " "}`),
      ...units(first, aligned, part, start, size));
  };

  const lesson = (siblings, aligned) => {
    const worths = treegrpo.turnsOf(state.branch).map((turn) => ({ turn, ...treegrpo.worthOf(siblings, turn) }));
    const scoredOnes = worths.filter(({ leaves }) => leaves);
    if (!scoredOnes.length) return "none of them has a scored leaf";
    if (worths.length === 1) {
      const values = new Set(siblings.map((i) => treegrpo.column("value")[i]).filter((value) => !Number.isNaN(value)));
      return `the same turn ${siblings.length} times, worth ${number(worths[0].value)} on ${ofLeaves(worths[0].leaves)}` +
        (values.size > 1 ? ": what differs came later" : "");
    }
    if (scoredOnes.length < 2) return "fewer than two different turns have a scored leaf: nothing can be compared";
    const best = scoredOnes.reduce((a, b) => (b.value > a.value ? b : a));
    const worst = scoredOnes.reduce((a, b) => (b.value < a.value ? b : a));
    if (best.value === worst.value) return `${worths.length} different turns, all worth ${number(best.value)}`;
    return [said(siblings, aligned, best), "; ", said(siblings, aligned, worst), `; gap ${number(best.value - worst.value)}`];
  };
  const said = (siblings, aligned, { turn, value, leaves }) => {
    const [first] = turn.members;
    const text = aligned.parts[first] ? unitText(siblings[first], aligned, aligned.parts[first], aligned.parts[first].at) : null;
    const names = turn.members.map((k) => k + 1);
    return el("span", {}, text === null ? null : el("q", { dir: "auto" }, visible(text.trim() || text)),
      ` (sibling${names.length > 1 ? "s" : ""} ${names.slice(0, 6).join(", ")}${names.length > 6 ? " …" : ""}) worth `, el("b", {}, number(value)), ` on ${ofLeaves(leaves)}`);
  };

  const navigation = () => {
    const points = treegrpo.branchingPoints();
    const now = points.findIndex((point) => isSame(point.node, state.branch));
    const step = (by, label, sign) =>
      el("button", { title: label, "aria-label": label, disabled: points.length < 2, onclick: () => treegrpo.stepBranch(by) }, sign);
    return el("span", { class: "branch-steps" },
      step(-1, "Branching point with the next wider gap", "‹"),
      el("span", {}, `${now + 1} of ${points.length} by gap`),
      step(1, "Branching point with the next smaller gap", "›"));
  };

  const draw = (element) => {
    const { branch } = state;
    element.classList.toggle("empty", branch < 0);
    if (branch < 0) {
      element.replaceChildren(el("div", { class: "pane-head" }, el("h2", {}, "siblings"),
        el("span", { class: "pane-note" }, "no turn on the way to this node has a sibling")));
      return;
    }
    const siblings = treegrpo.siblingsUnder(branch);
    const aligned = treegrpo.aligned(siblings);
    const severalTrees = new Set(siblings.map((i) => nodes.tree[i])).size > 1;
    const differ = aligned.parts.some((part) => part.nearest >= 0);
    const shown = all ? siblings : siblings.slice(0, SHOWN);
    const where = nodes.parent[branch] < 0 ? "after the prompt" : `after node ${idOf(branch)}`;
    const grid = el("div", { class: "sibling-grid" },
      ...shown.map((i, k) => card(siblings, i, k, aligned, severalTrees)),
      prefix(siblings, aligned, differ),
      ...(differ ? shown.map((i, k) => column(i, k, aligned)) : []));
    grid.style.gridTemplateColumns = shown
      .map((_, k) => (aligned.parts[k].repeats >= 0 && differ ? "minmax(270px, .5fr)" : "minmax(270px, 1fr)")).join(" ");
    element.replaceChildren(
      el("div", { class: "pane-head" }, el("h2", {}, `${siblings.length} siblings ${where}`),
        el("span", { class: "lesson" }, ...[lesson(siblings, aligned)].flat()), navigation()),
      el("div", { class: "sibling-scroll", tabindex: 0, role: "group", "aria-label": "Siblings" }, grid,
        shown.length < siblings.length
          ? el("button", { class: "more", onclick: () => { all = true; draw(element); } }, `show all ${siblings.length} siblings`)
          : null));
  };

  treegrpo.register({
    name: "siblings",
    slot: "none",
    start() {
      const element = document.getElementById("siblings");
      draw(element);
      treegrpo.on("changed", ({ changed }) => {
        if (changed.has("branch")) all = false;
        if (["branch", "node", "scoring", "colouring"].some((name) => changed.has(name))) draw(element);
      });
    },
  });
})();
