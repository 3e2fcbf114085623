/* Prompts and their trees, on the left: how many nodes and leaves, the mean reward, and how far rewards lie apart. */
(() => {
  const { nodes, prompts, trees, state, el, number, visible } = treegrpo;
  const HEIGHT = 24;
  let items = [];

  const means = new Map();
  const rewardsOf = (first, end) => {
    const found = [];
    for (let i = first; i < end; i++) if (!Number.isNaN(nodes.reward[i])) found.push(nodes.reward[i]);
    return found;
  };
  const spreadOf = (key, spans) => {
    if (!means.has(key)) {
      const rewards = spans.flatMap(([first, end]) => rewardsOf(first, end));
      const mean = rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length;
      const square = rewards.reduce((sum, reward) => sum + (reward - mean) ** 2, 0) / rewards.length;
      means.set(key, { leaves: rewards.length, mean, std: Math.sqrt(square) });
    }
    return means.get(key);
  };
  const ofTree = (tree) => spreadOf(tree, [[tree.start, tree.end]]);
  const ofPrompt = (prompt) => spreadOf(prompt, prompt.trees.map((t) => [trees[t].start, trees[t].end]));

  const isListed = (prompt) =>
    (state.step === null || prompt.step === state.step) && prompt.trees.some((t) => treegrpo.isShown(trees[t].start));

  const figures = (spread, name) =>
    el("span", { class: "figures", role: "gridcell" },
      el("span", { class: "figure", title: `mean reward of ${spread.leaves} scored leaves` }, number(spread.mean)),
      el("span", { class: "figure spread", title: `standard deviation of rewards in ${name}` }, `±${number(spread.std)}`));

  const sizeOf = (prompt) => prompt.trees.reduce((sum, t) => sum + trees[t].end - trees[t].start, 0);
  const count = (n, one) => `${n.toLocaleString("en")} ${one}${n === 1 ? "" : "s"}`;

  const drawPrompt = (prompt) => {
    const step = prompt.step === null ? "" : `step ${prompt.step} · `;
    const question = prompt.question ? `${visible(prompt.question.slice(0, 1000))}\n` : "";
    const about = `${question}${step}${visible(prompt.id.slice(0, 80))} · ${count(prompt.trees.length, "tree")} · ${count(sizeOf(prompt), "node")}`;
    return el("div", { class: "row prompt", role: "row", "aria-level": 1, "aria-expanded": "true", title: about },
      el("span", { class: "what", role: "gridcell", dir: "auto" }, visible((prompt.question || prompt.id).slice(0, 300)) || "(no name)"),
      figures(ofPrompt(prompt), "the prompt"));
  };

  const drawTree = (tree) =>
    el("div", { class: "row tree", role: "row", "aria-level": 2 },
      el("span", { class: "what", role: "gridcell" }, `tree ${tree.tree_id} · ${count(tree.end - tree.start, "node")}`),
      figures(ofTree(tree), "the tree"));

  treegrpo.register({
    name: "list",
    slot: "none",
    start() {
      const rows = new treegrpo.Rows(document.getElementById("prompt-rows"), {
        height: HEIGHT,
        role: "treegrid",
        label: "Prompts and trees",
        draw(k) {
          const item = items[k];
          const row = item.tree ? drawTree(item.tree) : drawPrompt(item.prompt);
          const isChosen = item.tree ? item.tree.place === state.tree : item.prompt.place === state.prompt;
          row.setAttribute("aria-selected", isChosen);
          if (isChosen) row.classList.add("chosen");
          return row;
        },
        choose: (k) => treegrpo.select(items[k].tree ? { tree: items[k].tree.place } : { prompt: items[k].prompt.place }),
      });
      const activeItem = () => items.findIndex((item) => item.tree?.place === state.tree);
      const show = () => {
        const listed = prompts.filter(isListed);
        items = listed.flatMap((prompt) => [{ prompt }, ...prompt.trees.map((t) => ({ prompt, tree: trees[t] }))]);
        rows.show(items.length, activeItem());
        const hidden = prompts.length - listed.length;
        document.getElementById("prompts-note").textContent =
          `${listed.length.toLocaleString("en")}${hidden ? ` of ${prompts.length.toLocaleString("en")}` : ""}`;
      };
      show();
      treegrpo.on("changed", ({ changed }) => {
        if (changed.has("filters") || changed.has("step")) show();
        else if (changed.has("tree") || changed.has("prompt")) {
          const active = items[rows.active];
          const stays = active && !active.tree && active.prompt.place === state.prompt;
          rows.activate(stays ? rows.active : Math.max(0, activeItem()));
        }
      });
    },
  });
})();
