/* What rows are drawn: those whose node is wanted by every filter, and what leads to them. */
(() => {
  const { el, nodes, prompts, trees, state, statuses } = treegrpo;
  const STATES = [["", "any"], ["decided", "decided: they differ"], ["undecided", "undecided: all equal"]];

  const field = (id, label, input) => el("span", { class: "pair" }, el("label", { for: id }, label), input);
  const numeric = (id, label, placeholder, step) =>
    el("input", { id, type: "number", step, "aria-label": label, placeholder, class: "short" });

  treegrpo.register({
    name: "filters",
    slot: "filterbar",
    start(element) {
      const text = el("input", { id: "filter-prompt", type: "search", placeholder: "question or id", autocomplete: "off", spellcheck: "false" });
      const low = numeric("filter-reward-low", "lowest reward", "least", "any");
      const high = numeric("filter-reward-high", "highest reward", "most", "any");
      const top = numeric("filter-depth-low", "lowest depth", "least", "1");
      const deep = numeric("filter-depth-high", "highest depth", "most", "1");
      const present = new Set(nodes.status);
      const status = el("select", { id: "filter-status" }, el("option", { value: "" }, "any"),
        ...statuses.map((name, k) => (present.has(k) ? el("option", { value: k }, name.replace("_", " ")) : null)));
      const decision = el("select", { id: "filter-decision" }, ...STATES.map(([value, name]) => el("option", { value }, name)));
      const clear = el("button", { type: "button", hidden: true }, "clear filters");
      const note = el("output", { class: "pane-note", for: "filter-prompt filter-status", id: "filter-note" });
      const inputs = [text, low, high, top, deep, status, decision];

      const within = (column, from, to) => {
        if (from.value === "" && to.value === "") return null;
        const [least, most] = [from.value === "" ? -Infinity : Number(from.value), to.value === "" ? Infinity : Number(to.value)];
        return (i) => column[i] >= least && column[i] <= most;
      };
      const ofPrompt = () => {
        const asked = text.value.trim().toLowerCase();
        if (!asked) return null;
        const is = prompts.map((prompt) => `${prompt.id}\n${prompt.question}`.toLowerCase().includes(asked));
        return (i) => is[trees[nodes.tree[i]].prompt];
      };
      const ofDecision = () => {
        if (!decision.value) return null;
        const found = new Map();
        const stateOf = (parent) => {
          const key = nodes.parent[parent] < 0 ? trees[prompts[trees[nodes.tree[parent]].prompt].trees[0]].start : parent;
          if (!found.has(key)) found.set(key, treegrpo.decision(parent));
          return found.get(key);
        };
        return (i) => nodes.parent[i] >= 0 && stateOf(nodes.parent[i]) === decision.value;
      };
      const apply = () => {
        const wants = [
          ofPrompt(),
          within(nodes.reward, low, high),
          within(nodes.depth, top, deep),
          status.value === "" ? null : (i) => nodes.status[i] === Number(status.value),
          ofDecision(),
        ].filter(Boolean);
        clear.hidden = wants.length === 0;
        treegrpo.filter("controls", wants.length ? (i) => wants.every((want) => want(i)) : null);
        const ofStep = (i) => state.step === null || prompts[trees[nodes.tree[i]].prompt].step === state.step;
        let [num, first] = [0, -1];
        for (let i = 0; wants.length && i < nodes.size; i++)
          if (treegrpo.isWanted(i)) {
            num++;
            if (first < 0 && ofStep(i)) first = i;
          }
        note.textContent = wants.length ? `${num.toLocaleString("en")} of ${nodes.size.toLocaleString("en")} nodes` : "";
        if (first >= 0 && !treegrpo.isShown(state.node)) treegrpo.select({ node: first });
      };

      let waiting = 0;
      const later = () => {
        clearTimeout(waiting);
        waiting = setTimeout(apply, 120);
      };
      for (const input of inputs) input.addEventListener(input.tagName === "SELECT" ? "change" : "input", input.tagName === "SELECT" ? apply : later);
      clear.addEventListener("click", () => {
        for (const input of inputs) input.value = "";
        apply();
        text.focus();
      });
      treegrpo.on("changed", ({ changed }) => {
        if (changed.has("scoring") && decision.value) apply();
      });
      element.append(
        field("filter-prompt", "prompt", text),
        el("span", { role: "group", class: "pair", "aria-label": "Reward" }, el("span", { class: "name" }, "reward"), low, "to", high),
        el("span", { role: "group", class: "pair", "aria-label": "Depth" }, el("span", { class: "name" }, "depth"), top, "to", deep),
        field("filter-status", "status", status),
        field("filter-decision", "siblings", decision),
        clear, note);
    },
  });
})();
