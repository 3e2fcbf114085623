/* The chosen node stands in the page's address, by the names that it has in the file: a link leads to it. */
(() => {
  const { nodes, prompts, trees, scorings, state } = treegrpo;

  const written = () => {
    const tree = trees[state.tree];
    const prompt = prompts[tree.prompt];
    const fields = new URLSearchParams({ prompt: prompt.id });
    if (prompt.step !== null) fields.set("step", prompt.step);
    fields.set("tree", tree.tree_id);
    fields.set("node", state.node - tree.start);
    const { name } = scorings[state.scoring];
    if (name !== null) fields.set("estimator", name);
    return `#${fields}`;
  };

  const chosen = () => {
    const fields = new URLSearchParams(location.hash.slice(1));
    const changes = {};
    const scoring = scorings.find(({ name }) => name !== null && name === fields.get("estimator"));
    if (scoring) changes.scoring = scoring.place;
    const step = fields.get("step");
    const prompt = prompts.find(({ id, step: of }) => id === fields.get("prompt") && (step === null || String(of) === step));
    if (!prompt) return changes;
    const tree = trees[prompt.trees.find((t) => String(trees[t].tree_id) === fields.get("tree")) ?? prompt.trees[0]];
    const node = Number(fields.get("node") ?? 0);
    changes.node = Number.isInteger(node) && node >= 0 && tree.start + node < tree.end ? tree.start + node : tree.start;
    return changes;
  };

  treegrpo.register({
    name: "address",
    slot: "none",
    start() {
      const go = () => {
        const changes = chosen();
        if (Object.keys(changes).length) treegrpo.select(changes);
      };
      go();
      treegrpo.on("changed", ({ changed }) => {
        if (["node", "scoring"].some((name) => changed.has(name))) history.replaceState(null, "", written());
      });
      addEventListener("hashchange", go);
    },
  });
})();
