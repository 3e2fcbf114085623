/* The chosen node, by the names that it has in the file, filters and search stand in the address: a link leads to it. */
(() => {
  const { nodes, prompts, trees, scorings, state } = treegrpo;

  const CONTROLS = ["filter-prompt", "filter-reward-low", "filter-reward-high", "filter-depth-low", "filter-depth-high",
    "filter-status", "filter-decision", "search"];
  const control = (id) => document.getElementById(id);
  const read = () => new URLSearchParams(location.hash.slice(1));

  const written = () => {
    const tree = trees[state.tree];
    const prompt = prompts[tree.prompt];
    const fields = new URLSearchParams({ prompt: prompt.id });
    if (prompt.step !== null) fields.set("step", prompt.step);
    fields.set("tree", tree.tree_id);
    fields.set("node", state.node - tree.start);
    const { name } = scorings[state.scoring];
    if (name !== null) fields.set("estimator", name);
    for (const id of CONTROLS) if (control(id).value) fields.set(id, control(id).value);
    return `#${fields}`;
  };

  const chosen = (fields) => {
    const changes = {};
    const scoring = scorings.find(({ name }) => name !== null && name === fields.get("estimator"));
    if (scoring) changes.scoring = scoring.place;
    const step = fields.get("step");
    const prompt = prompts.find(({ id, step: of }) => id === fields.get("prompt") && (step === null || String(of) === step));
    if (!prompt) return changes;
    if (state.step !== null && prompt.step !== state.step) changes.step = null;
    const tree = trees[prompt.trees.find((t) => String(trees[t].tree_id) === fields.get("tree")) ?? prompt.trees[0]];
    const node = Number(fields.get("node") ?? 0);
    changes.node = Number.isInteger(node) && node >= 0 && tree.start + node < tree.end ? tree.start + node : tree.start;
    return changes;
  };

  const fill = (input, value) => {
    if (input.value === value) return;
    input.value = value;
    for (const kind of ["input", "change"]) input.dispatchEvent(new Event(kind));
  };

  treegrpo.register({
    name: "address",
    slot: "none",
    start() {
      const go = () => {
        const fields = read();
        const changes = chosen(fields);
        if (Object.keys(changes).length) treegrpo.select(changes);
        for (const id of fields.has("prompt") ? CONTROLS : []) fill(control(id), fields.get(id) ?? "");
      };
      const write = () => history.replaceState(null, "", written());
      go();
      treegrpo.on("changed", ({ changed }) => {
        if (["node", "scoring", "filters"].some((name) => changed.has(name))) write();
      });
      document.getElementById("search").addEventListener("change", write);
      addEventListener("hashchange", go);
    },
  });
})();
