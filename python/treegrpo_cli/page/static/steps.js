/*
A slider over the steps of a run: it follows the chosen prompt over the steps in which it occurs, or shows one step's
prompts after another. Its chart is of one depth: how far siblings' values lie apart, and the depth's share of |advantage|.
*/
(() => {
  const { el, nodes, prompts, trees, state, number } = treegrpo;
  const steps = [...new Set(prompts.map((prompt) => prompt.step))].filter((step) => step !== null).sort((a, b) => a - b);

  const figures = new Map();
  const figuresOf = (places, depth) => {
    const key = `${state.scoring} ${depth} ${places.join(" ")}`;
    if (figures.has(key)) return figures.get(key);
    const advantage = treegrpo.column("advantage");
    const parents = new Set();
    let [here, all] = [0, 0];
    for (const p of places)
      for (const t of prompts[p].trees)
        for (let i = trees[t].start + 1; i < trees[t].end; i++) {
          const size = advantage && !Number.isNaN(advantage[i]) ? Math.abs(advantage[i]) : 0;
          all += size;
          if (nodes.depth[i] !== depth) continue;
          here += size;
          parents.add(nodes.parent[nodes.parent[i]] < 0 ? trees[prompts[p].trees[0]].start : nodes.parent[i]);
        }
    const { gap } = treegrpo.gaps(parents);
    figures.set(key, { gap, share: all ? here / all : null });
    return figures.get(key);
  };

  if (steps.length < 2) return;
  treegrpo.register({
    name: "steps",
    slot: "filterbar",
    start(element) {
      const depths = [...new Set(nodes.depth)].filter((depth) => depth > 0).sort((a, b) => a - b);
      const follow = el("select", { id: "steps-follow", onchange: () => draw(true) },
        el("option", { value: "prompt" }, "this prompt"), el("option", { value: "all" }, "all prompts of a step"));
      const depth = el("select", { id: "steps-depth", onchange: () => draw() }, ...depths.map((d) => el("option", { value: d }, d)));
      const slider = el("input", { type: "range", id: "steps-slider", min: 0, step: 1, oninput: () => go(Number(slider.value)) });
      const name = el("output", { class: "step-name", for: "steps-slider" });
      const every = el("button", { type: "button", onclick: () => treegrpo.select({ step: null }) }, "all steps");
      const picture = el("span", { class: "picture" });
      const told = el("span", { class: "pane-note", id: "steps-note" });

      const followed = () => prompts.filter((prompt) => prompt.step !== null && prompt.same === prompts[state.prompt].same);
      const stops = () => {
        if (follow.value === "all") return steps.map((step) => ({ step, places: prompts.filter((p) => p.step === step).map((p) => p.place) }));
        const found = new Map();
        for (const prompt of followed()) found.set(prompt.step, [...(found.get(prompt.step) ?? []), prompt.place]);
        return [...found].sort(([a], [b]) => a - b).map(([step, places]) => ({ step, places }));
      };
      const go = (k) => {
        const stop = stops()[k];
        const same = stop.places.find((p) => prompts[p].same === prompts[state.prompt].same) ?? stop.places[0];
        treegrpo.select({ step: follow.value === "all" ? stop.step : null, prompt: same });
      };
      const draw = (asked = false) => {
        if (asked && follow.value === "prompt" && state.step !== null) treegrpo.select({ step: null });
        if (asked && follow.value === "all") treegrpo.select({ step: prompts[state.prompt].step });
        const found = stops();
        const current = Math.max(0, found.findIndex(({ step }) => step === prompts[state.prompt].step));
        const all = found.map(({ places }) => figuresOf(places, Number(depth.value)));
        slider.max = found.length - 1;
        slider.value = current;
        slider.disabled = found.length < 2;
        slider.setAttribute("aria-valuetext", `step ${found[current]?.step ?? "none"}, ${current + 1} of ${found.length}`);
        name.textContent = found.length ? `step ${found[current].step}` : "";
        every.hidden = state.step === null;
        depth.disabled = found.length < 2;
        picture.hidden = found.length < 2;
        if (found.length < 2) {
          told.textContent = "in no other step; “all prompts of a step” goes through the run";
          return;
        }
        const lines = [
          { name: "gap between siblings", values: all.map(({ gap }) => gap) },
          { name: "share of |advantage|", values: all.map(({ share }) => share) },
        ];
        picture.replaceChildren(treegrpo.chart(found.map(({ step }) => step), lines, current));
        const { gap, share } = all[current];
        told.replaceChildren(
          el("span", { class: "key key-0" }, `gap ${number(gap)}`), " ",
          el("span", { class: "key key-1" }, `share of |advantage| ${share === null ? "·" : `${(100 * share).toFixed(0)}%`}`));
      };
      element.append(
        el("label", { for: "steps-follow" }, "over steps"), follow, el("label", { for: "steps-slider" }, "step"), slider, name, every,
        el("label", { for: "steps-depth" }, "at depth"), depth, picture, told);
      draw();
      treegrpo.on("changed", ({ changed }) => {
        if (["prompt", "step", "scoring"].some((what) => changed.has(what))) draw();
      });
    },
  });
})();
