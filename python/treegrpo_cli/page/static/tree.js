/*
The trees of a prompt, one row a node. A turn without siblings stands below its parent in the same column; the drawing
moves to the right only where a tree branches, so that a long chain stays readable.
*/
(() => {
  const { nodes, prompts, trees, state, el, number, scored, visible, statuses } = treegrpo;
  const HEIGHT = 26;
  const MAX_GUIDES = 20;
  const DONE = statuses.indexOf("done");
  const OPEN = statuses.indexOf("open");
  let items = [];
  let placeOf = new Map();
  let compared = new Set();

  /* A guide is a letter: v a line that passes, t a branch that is not the last, e the last one, a blank nothing. */
  const walk = (root) => {
    const stack = [{ node: root, lead: "", rest: "", up: false }];
    const found = [];
    while (stack.length) {
      const { node, lead, rest, up } = stack.pop();
      const below = Array.from(treegrpo.children(node)).filter(treegrpo.isShown);
      const closed = state.collapsed.has(node) && below.length > 0;
      const goesOn = below.length === 1 && !closed;
      found.push({ node, lead: lead.slice(-MAX_GUIDES), up, down: goesOn, branches: below.length, closed });
      if (closed) continue;
      if (goesOn) stack.push({ node: below[0], lead: rest, rest, up: true });
      else
        for (let k = below.length - 1; k >= 0; k--) {
          const last = k === below.length - 1;
          stack.push({ node: below[k], lead: rest + (last ? "e" : "t"), rest: rest + (last ? " " : "v"), up: false });
        }
    }
    return found;
  };

  const range = (column) => {
    let [low, high] = [0, 0];
    for (const x of column) {
      if (x < low) low = x;
      if (x > high) high = x;
    }
    return [low, high];
  };
  const scales = new Map();
  treegrpo.scale = (name) => {
    const key = `${state.scoring} ${name}`;
    if (!scales.has(key)) {
      const [low, high] = range(treegrpo.column(name) ?? []);
      scales.set(key, { low, high, max: Math.max(-low, high) || 1 });
    }
    return scales.get(key);
  };

  const label = (node) => {
    if (nodes.parent[node] < 0) return [el("b", { class: "root-name" }, `tree ${trees[nodes.tree[node]].tree_id}`)];
    const parts = treegrpo.segments(nodes.excerpt[node]);
    const acts = parts.filter((part) => part.kind === "call" || part.kind === "answer");
    const words = parts.filter((part) => part.kind === "thought" || part.kind === "text");
    const shown = [
      ...acts.map((part) => el("span", { class: `act ${part.kind}` }, el("span", { class: "tool" }, visible(part.tag)), " ", visible(part.text))),
      ...words.map((part) => el("span", { class: "words" }, visible(part.text))),
    ];
    return shown.length ? shown : [el("span", { class: "words" }, `node ${node - trees[nodes.tree[node]].start}`)];
  };

  const graph = (item) => {
    const { node } = item;
    const dot = nodes.status[node] === OPEN ? "open" : nodes.status[node] === DONE ? "done" : "odd";
    return el("span", { class: "graph", "aria-hidden": "true" },
      ...Array.from(item.lead, (letter) => el("i", { class: `guide ${letter === " " ? "" : letter}` })),
      el("i", { class: `dot ${dot}${item.up ? " up" : ""}${item.down || (item.branches > 1 && !item.closed) ? " down" : ""}` }));
  };

  const toggle = (item) =>
    item.branches
      ? el("button", {
          class: `fold${item.branches > 1 || item.closed ? " branching" : ""}`,
          tabindex: -1,
          "aria-hidden": "true",
          title: item.closed ? "Show what is below" : "Hide what is below",
          onclick(event) {
            event.preventDefault();
            treegrpo.collapse(item.node, !item.closed);
          },
        }, item.closed ? "▸" : "▾")
      : el("span", { class: "fold" });

  const fork = (item) =>
    el("button", {
      class: `fork${item.node === state.branch ? " compared" : ""}`,
      tabindex: -1,
      "aria-hidden": "true",
      title: `Compare the ${item.branches} siblings that part here`,
      onclick(event) {
        event.preventDefault();
        treegrpo.select({ node: treegrpo.children(item.node)[0], branch: item.node });
      },
    }, `${item.branches}`);

  const valueCell = (value) => {
    const { low, high } = treegrpo.scale("value");
    const bar = el("i", { class: "bar-fill" });
    const at = (x) => (100 * (x - low)) / (high - low || 1);
    bar.style.left = `${Math.min(at(0), at(value))}%`;
    bar.style.width = Number.isNaN(value) ? "0" : `${Math.abs(at(value) - at(0))}%`;
    return [el("span", { class: "meter", "aria-hidden": "true" }, bar), number(value)];
  };

  const cell = (name, ...children) => el("span", { class: `cell ${name}`, role: "gridcell" }, ...children);

  const drawRow = (item, k) => {
    const { node } = item;
    const status = statuses[nodes.status[node]];
    const isRoot = nodes.parent[node] < 0;
    const advantage = treegrpo.column("advantage")[node];
    const row = el("div", {
      class: `row node${node === state.node ? " chosen" : ""}${compared.has(node) ? " sibling" : ""}` +
        `${isRoot ? " root" : ""}${treegrpo.isWanted(node) ? "" : " unwanted"} status-${status}`,
      role: "row",
      "aria-label": treegrpo.rowName(node),
      "aria-level": nodes.depth[node] + 1,
      "aria-selected": node === state.node,
      "aria-expanded": item.branches ? String(!item.closed) : null,
      "data-node": node,
    },
      cell("turn", graph(item), toggle(item), el("span", { class: "label", dir: "auto" }, ...label(node)),
        item.closed ? el("span", { class: "folded" }, `+${below(node).toLocaleString("en")}`) : null,
        item.branches > 1 ? fork(item) : null),
      cell("status", el("span", { class: status === "open" ? "sr" : "", title: status.replace("_", " ") }, status.replace("truncated_", "cut: "))),
      cell("depth", String(Math.max(0, nodes.depth[node]))),
      cell("leaves", nodes.num_leaves[node] < 0 ? "·" : String(nodes.num_leaves[node])),
      cell("reward", Number.isNaN(nodes.reward[node]) ? "" : number(nodes.reward[node])),
      cell("value", ...valueCell(treegrpo.column("value")[node])),
      cell("advantage", isRoot ? "" : scored(advantage, treegrpo.scale("advantage").max)));
    return row;
  };

  const below = (node) => {
    const end = trees[nodes.tree[node]].end;
    const inside = new Set([node]);
    for (let i = node + 1; i < end; i++) if (inside.has(nodes.parent[i])) inside.add(i);
    return inside.size - 1;
  };

  const header = () =>
    el("div", { class: "row head", role: "row" },
      ...["turn", "status", "depth", "leaves", "reward", "value", "advantage"].map((name) =>
        el("span", { class: `cell ${name}`, role: "columnheader" }, name)));

  treegrpo.register({
    name: "tree",
    slot: "none",
    start() {
      const rows = new treegrpo.Rows(document.getElementById("tree-rows"), {
        height: HEIGHT,
        role: "treegrid",
        label: "Nodes of the prompt's trees",
        header: header(),
        draw: (k) => drawRow(items[k], k),
        choose: (k) => treegrpo.select({ node: items[k].node }),
        key(event, k) {
          const item = items[k];
          if (!item) return;
          const parent = nodes.parent[item.node];
          if (event.key === "ArrowLeft") {
            if (item.branches && !item.closed) treegrpo.collapse(item.node, true);
            else if (parent >= 0) treegrpo.select({ node: parent });
          } else if (event.key === "ArrowRight") {
            if (item.closed) treegrpo.collapse(item.node, false);
            else if (item.branches) treegrpo.select({ node: items[k + 1].node });
          } else return;
          event.preventDefault();
        },
      });
      const compare = () => {
        compared = new Set(state.branch < 0 ? [] : treegrpo.siblingsUnder(state.branch));
      };
      const show = () => {
        const prompt = prompts[state.prompt];
        items = prompt.trees.filter((t) => treegrpo.isShown(trees[t].start)).flatMap((t) => walk(trees[t].start));
        placeOf = new Map(items.map((item, k) => [item.node, k]));
        document.getElementById("tree-title").textContent = visible((prompt.question || prompt.id).slice(0, 400));
        document.getElementById("tree-note").textContent =
          `${prompt.trees.length} tree${prompt.trees.length === 1 ? "" : "s"} · ${items.length.toLocaleString("en")} rows`;
        rows.show(items.length, placeOf.get(state.node) ?? 0);
      };
      compare();
      show();
      treegrpo.on("changed", ({ changed }) => {
        compare();
        const hidden = changed.has("node") && !placeOf.has(state.node);
        if (hidden || ["prompt", "collapsed", "filters"].some((name) => changed.has(name))) show();
        else if (changed.has("node")) rows.activate(placeOf.get(state.node) ?? 0);
        else if (changed.has("scoring") || changed.has("branch")) rows.redraw();
      });
    },
  });
})();
