/*
What is chosen, and who is told.

  treegrpo.state             {step, prompt, tree, node, branch, scoring, colouring, collapsed}
                             step: a number, or null for all; prompt, tree, node: places; branch: the node whose children
                             stand side by side, -1 where there is none; scoring: a place in treegrpo.scorings;
                             colouring: "advantage" or "logprob"; collapsed: a Set of nodes whose children are not drawn
  treegrpo.select(changes)   takes some of these, settles what follows from them (a node brings its tree, its prompt and
                             the branching point above it; a prompt its first tree and its branching point of the widest
                             gap; a tree its root), and tells it
  treegrpo.on("changed", f)  f({changed: Set of names}): after every select, filter or collapse
  treegrpo.filter(name, f)   f(i) says whether a node is wanted; null takes the filter away. A row is drawn where it or a
                             row below it is wanted by all filters; "filters" is among the changed names
  treegrpo.isWanted(i), isShown(i)   whether all filters want a node, and whether it or a node below it is wanted
  treegrpo.register(module)  {name, slot, start(element)}: `start` is called once, with an element of its own, when the
                             page is ready. Slots: "toolbar" (right of the title), "filterbar" (a bar of its own below
                             it, hidden while empty), "list" (above the prompts), "tree" (above the rows), "none"
*/
(() => {
  const { nodes, trees, prompts } = treegrpo;
  const modules = [];
  const listeners = [];
  const filters = new Map();
  let wanted = null;
  let shown = null;

  const state = {
    step: null,
    prompt: 0,
    tree: 0,
    node: 0,
    branch: -1,
    scoring: 0,
    colouring: "advantage",
    collapsed: new Set(),
  };

  const tell = (names) => {
    const event = { changed: new Set(names) };
    for (const listener of listeners) listener(event);
  };

  /* The branching point whose children are compared: the node's parent, else the node itself, else the nearest above. */
  const branchOf = (node) => {
    const parent = nodes.parent[node];
    if (parent >= 0 && isBranching(parent)) return parent;
    if (isBranching(node)) return node;
    for (let above = parent; above >= 0; above = nodes.parent[above]) if (isBranching(above)) return above;
    return -1;
  };

  /* First turns of all trees of a prompt leave the same state. */
  const siblingsUnder = (parent) => {
    if (nodes.parent[parent] >= 0) return Array.from(treegrpo.children(parent));
    return prompts[trees[nodes.tree[parent]].prompt].trees.flatMap((t) => Array.from(treegrpo.children(trees[t].start)));
  };
  const isBranching = (node) => {
    const own = treegrpo.children(node).length;
    return own > 1 || (own > 0 && nodes.parent[node] < 0 && siblingsUnder(node).length > 1);
  };

  const settle = (changes) => {
    const next = { ...changes };
    if (next.step !== undefined && next.step !== null && next.prompt === undefined && next.node === undefined) {
      const kept = prompts.filter((prompt) => prompt.step === next.step);
      const same = kept.find((prompt) => prompt.same === prompts[state.prompt].same) ?? kept[0];
      if (same !== undefined && prompts[state.prompt].step !== next.step) next.prompt = same.place;
    }
    if (next.node === undefined && next.tree === undefined && next.prompt !== undefined) {
      next.tree = prompts[next.prompt].trees[0];
      next.branch ??= treegrpo.branchingPoints(next.prompt)[0]?.node;
    }
    if (next.node === undefined && next.tree !== undefined) next.node = trees[next.tree].start;
    if (next.node !== undefined) {
      next.tree = nodes.tree[next.node];
      next.prompt = trees[next.tree].prompt;
      next.branch ??= branchOf(next.node);
    }
    return next;
  };

  const refilter = () => {
    wanted = shown = null;
    if (!filters.size) return;
    wanted = new Uint8Array(nodes.size);
    shown = new Uint8Array(nodes.size);
    for (let i = nodes.size - 1; i >= 0; i--) {
      const is = [...filters.values()].every((filter) => filter(i)) ? 1 : 0;
      wanted[i] = is;
      shown[i] |= is;
      if (shown[i] && nodes.parent[i] >= 0) shown[nodes.parent[i]] = 1;
    }
  };

  Object.assign(treegrpo, {
    state,
    siblingsUnder,
    isBranching,
    select(changes) {
      const next = settle(changes);
      const names = Object.keys(next).filter((name) => state[name] !== next[name]);
      Object.assign(state, next);
      if (names.includes("node")) for (let i = nodes.parent[state.node]; i >= 0; i = nodes.parent[i]) state.collapsed.delete(i);
      if (names.length) tell(names);
    },
    collapse(node, closed) {
      if (closed) state.collapsed.add(node);
      else state.collapsed.delete(node);
      tell(["collapsed"]);
    },
    on(_, listener) {
      listeners.push(listener);
    },
    filter(name, wants) {
      if (wants) filters.set(name, wants);
      else filters.delete(name);
      refilter();
      tell(["filters"]);
    },
    isWanted: (i) => wanted === null || wanted[i] === 1,
    isShown: (i) => shown === null || shown[i] === 1,
    register(module) {
      modules.push(module);
    },
    start(slots) {
      Object.assign(state, settle({ prompt: 0 }));
      const [first] = treegrpo.branchingPoints();
      if (first) Object.assign(state, settle({ node: siblingsUnder(first.node)[0], branch: first.node }));
      for (const module of modules) {
        const element = document.createElement("div");
        element.className = `module ${module.name}`;
        const slot = slots.get(module.slot);
        if (slot) {
          slot.hidden = false;
          slot.append(element);
        }
        module.start(element);
      }
    },
    scoring: () => treegrpo.scorings[state.scoring],
    column: (name) => treegrpo.scorings[state.scoring].column(name),
  });
})();
