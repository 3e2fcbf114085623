/* The chosen node: its numbers, its turn taken apart, what the environment answered, and its tokens. */
(() => {
  const { nodes, prompts, trees, state, statuses, el, number, scored, written, visible, segments } = treegrpo;
  const SHOWN = 20000;
  const PIECE = 4000;
  const KINDS = { thought: "thought", call: "tool call", answer: "answer", text: "text" };

  /* Parts of a long text that end at a line or a word, so that the browser lays out those in view alone. */
  const pieces = (text) => {
    const found = [];
    for (let start = 0; start < text.length; ) {
      const near = text.slice(start, start + PIECE);
      const line = near.lastIndexOf("\n") + 1 || near.lastIndexOf(" ") + 1;
      const isHalf = near.length === PIECE && /[\ud800-\udbff]$/.test(near);
      const end = start + (near.length === PIECE && line ? line : near.length - (isHalf ? 1 : 0));
      found.push(text.slice(start, end));
      start = end;
    }
    return found;
  };

  const long = (text) => {
    const body = el("div", { class: "words", dir: "auto" }, written(text.slice(0, SHOWN)));
    if (text.length > SHOWN)
      body.append(el("button", {
        class: "more",
        onclick: () => body.replaceChildren(...pieces(text).map((piece) => el("div", { class: "piece" }, written(piece)))),
      }, `show all ${text.length.toLocaleString("en")} characters`));
    return body;
  };

  const block = (kind, name, text) =>
    el("div", { class: `block ${kind}` }, el("h3", {}, name), long(text));

  const turn = (text) =>
    segments(text).map((part) =>
      block(part.kind, part.kind === "call" ? `${KINDS.call}: ${visible(part.tag)}` : KINDS[part.kind], part.text));

  const fact = (name, value, extra) =>
    value === "" || value === null || value === undefined
      ? null
      : el("div", { class: "fact" }, el("dt", {}, name), el("dd", {}, value, extra ?? null));
  const known = (x) => (Number.isNaN(x) ? "" : number(x));
  const count = (x) => (x < 0 ? "" : x.toLocaleString("en"));

  const facts = (i, texts, id) => {
    const weight = treegrpo.column("weight");
    const kept = texts.kept[id];
    return el("dl", { class: "facts" },
      fact("advantage", nodes.parent[i] < 0 ? "" : scored(treegrpo.column("advantage")[i], treegrpo.scale("advantage").max)),
      fact("value", number(treegrpo.column("value")[i])),
      fact("leaves", count(nodes.num_leaves[i])),
      fact("reward", known(nodes.reward[i])),
      fact("true reward", known(nodes.true_reward[i])),
      fact("environment's reward", known(nodes.env_reward[i])),
      ...(texts.rewards[id] ?? []).map(([name, value]) => fact(`reward: ${visible(name)}`, visible(value))),
      fact("weight", weight ? known(weight[i]) : ""),
      fact("status", nodes.parent[i] < 0 ? "" : nodes.num_leaves[i] > 0 && statuses[nodes.status[i]] === "open" ? "open: it went on" : statuses[nodes.status[i]].replace("_", " ")),
      fact("kept", kept === false ? "no: it enters nothing" : ""),
      fact("depth", count(nodes.depth[i])),
      fact("round, draw", nodes.round[i] < 0 ? "" : `${nodes.round[i]}, ${Math.max(0, nodes.draw[i])}`),
      fact("policy version", count(nodes.policy_version[i])),
      fact("entropy", known(nodes.entropy[i])),
      fact("confidence", known(nodes.confidence[i])),
      fact("tokens", `${nodes.num_sampled[i].toLocaleString("en")} sampled, ${(nodes.num_tokens[i] - nodes.num_sampled[i]).toLocaleString("en")} masked`),
      fact("tool calls", count(nodes.num_tool_calls[i]), nodes.num_failed_tool_calls[i] > 0 ? `, ${nodes.num_failed_tool_calls[i]} failed` : null),
      fact("state key", texts.state_key[id] === null ? "" : visible(texts.state_key[id])),
      ...(texts.other[id] ?? []).map(([name, value]) => fact(visible(name), visible(value.slice(0, 2000)))));
  };

  const about = (prompt, tree) => [
    prompt.question ? block("question", "question", prompt.question) : null,
    prompt.task ? el("details", {}, el("summary", {}, "dataset row"), long(prompt.task)) : null,
    tree.meta ? el("details", {}, el("summary", {}, "where the tree comes from"), long(tree.meta)) : null,
  ];

  const draw = (element) => {
    const i = state.node;
    const tree = trees[nodes.tree[i]];
    const id = i - tree.start;
    const texts = treegrpo.texts(tree.place);
    const isRoot = nodes.parent[i] < 0;
    element.replaceChildren(
      el("div", { class: "pane-head" },
        el("h2", {}, isRoot ? "prompt" : `node ${id}`),
        el("span", { class: "pane-note" }, `tree ${tree.tree_id}${isRoot ? "" : ` · below node ${nodes.parent[i] - tree.start}`}`)),
      el("div", { class: "pane-body" },
        facts(i, texts, id),
        texts.error[id] ? block("error", "error", texts.error[id]) : null,
        ...(isRoot ? about(prompts[tree.prompt], tree) : []),
        ...turn(texts.text[id]),
        texts.observation[id] ? block("observation", "observation", texts.observation[id]) : null,
        nodes.num_tokens[i]
          ? el("div", { class: "block tokens" },
              el("h3", {}, `tokens by ${state.colouring === "logprob" ? "log-probability" : "advantage"}; hatched ones are masked${tree.vocabulary < 0 ? "; no tokenizer gave texts for the ids" : ""}`),
              el("p", { class: "token-line" }, ...treegrpo.tokenSpans(i)))
          : null));
  };

  treegrpo.register({
    name: "node",
    slot: "none",
    start() {
      const element = document.getElementById("node");
      draw(element);
      treegrpo.on("changed", ({ changed }) => {
        if (["node", "scoring", "colouring"].some((name) => changed.has(name))) draw(element);
        if (changed.has("node")) element.scrollTop = 0;
      });
    },
  });
})();
