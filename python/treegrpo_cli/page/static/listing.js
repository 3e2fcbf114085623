/* The index: prompts that can be searched and sorted, each a link to its page; a run's steps by a slider. */
(() => {
  const { el, prompts, steps, number, visible, title } = treegrpo;
  const HEIGHT = 30;
  const COLUMNS = ["prompt", "step", "trees", "nodes", "mean reward", "± reward"];
  const ORDERS = [
    ["file", "as in the files", () => 0],
    ["spread", "largest spread first", (a, b) => (b.std ?? -1) - (a.std ?? -1)],
    ["low", "lowest reward first", (a, b) => (a.mean ?? Infinity) - (b.mean ?? Infinity)],
    ["high", "highest reward first", (a, b) => (b.mean ?? -Infinity) - (a.mean ?? -Infinity)],
  ];
  const byId = (id) => document.getElementById(id);
  const many = (n, name) => `${n.toLocaleString("en")} ${name}${n === 1 ? "" : "s"}`;
  const sum = (name) => prompts.reduce((total, prompt) => total + prompt[name], 0);
  const hasSteps = steps.length > 0;
  let [listed, step] = [prompts, null];

  const cell = (name, ...inside) => el("span", { class: `cell ${name}`, role: "gridcell" }, ...inside);
  const drawRow = (k) => {
    const prompt = listed[k];
    const name = visible((prompt.question || prompt.id).slice(0, 300)) || "(no name)";
    return el("div", { class: `row entry${hasSteps ? "" : " no-steps"}`, role: "row", title: visible(prompt.id.slice(0, 300)) },
      cell("name", el("a", { href: prompt.href, dir: "auto", tabindex: -1 }, name)),
      hasSteps ? cell("figure", prompt.step === null ? "·" : String(prompt.step)) : null,
      cell("figure size", prompt.trees.toLocaleString("en")),
      cell("figure size", prompt.nodes.toLocaleString("en")),
      cell("figure", number(prompt.mean)),
      cell("figure", number(prompt.std)));
  };
  const header = el("div", { class: `row head${hasSteps ? "" : " no-steps"}`, role: "row" },
    ...COLUMNS.filter((name) => hasSteps || name !== "step").map((name, k) =>
      el("span", { class: `cell ${k ? "figure" : "name"}${["trees", "nodes"].includes(name) ? " size" : ""}`, role: "columnheader" }, name)));

  const rows = new treegrpo.Rows(byId("prompt-list"), {
    height: HEIGHT,
    role: "grid",
    label: "Prompts: Enter opens one",
    header,
    draw: drawRow,
    choose: (k) => rows.activate(k),
    key(event, k) {
      if (event.key === "Enter" && listed[k]) location.href = listed[k].href;
    },
  });

  const text = el("input", { id: "filter", type: "search", placeholder: "question or id", autocomplete: "off", spellcheck: "false" });
  const order = el("select", { id: "order" }, ...ORDERS.map(([value, name]) => el("option", { value }, name)));
  const note = el("output", { id: "filter-note", class: "pane-note", for: "filter", "aria-live": "polite" });
  const show = () => {
    const asked = text.value.trim().toLowerCase();
    const compare = ORDERS.find(([value]) => value === order.value)[2];
    listed = prompts.filter((prompt) =>
      (step === null || prompt.step === step) && (!asked || `${prompt.id}\n${prompt.question}`.toLowerCase().includes(asked))).sort(compare);
    note.textContent = listed.length === prompts.length ? "" : `${listed.length.toLocaleString("en")} of ${many(prompts.length, "prompt")}`;
    rows.show(listed.length, 0);
  };
  text.addEventListener("input", show);
  order.addEventListener("change", show);

  const stepBar = () => {
    const depths = Math.max(...steps.map(({ gap }) => gap.length));
    const depth = el("select", { id: "steps-depth", onchange: () => draw() },
      ...Array.from({ length: depths }, (_, k) => el("option", { value: k }, k + 1)));
    const slider = el("input", { type: "range", id: "steps-slider", min: -1, max: steps.length - 1, step: 1, value: -1, oninput: () => choose(Number(slider.value)) });
    const name = el("output", { class: "step-name", for: "steps-slider" });
    const every = el("button", { type: "button", id: "steps-every", onclick: () => choose(-1) }, "all steps");
    const picture = el("span", { class: "picture" });
    const told = el("span", { class: "pane-note", id: "steps-note" });
    const draw = () => {
      const current = Number(slider.value);
      const at = (column) => steps.map((found) => found[column][Number(depth.value)] ?? null);
      const [gap, share] = [at("gap"), at("share")];
      picture.replaceChildren(treegrpo.chart(steps.map((found) => found.step),
        [{ name: "gap between siblings", values: gap }, { name: "share of |advantage|", values: share }], current));
      told.replaceChildren(
        el("span", { class: "key key-0" }, step === null ? "gap" : `gap ${number(gap[current])}`), " ",
        el("span", { class: "key key-1" }, step === null ? "share of |advantage|" : `share of |advantage| ${share[current] === null ? "·" : `${(100 * share[current]).toFixed(0)}%`}`));
      slider.setAttribute("aria-valuetext", step === null ? "all steps" : `step ${step}, ${current + 1} of ${steps.length}`);
      name.textContent = step === null ? "all" : `step ${step}`;
      every.hidden = step === null;
    };
    const choose = (k) => {
      slider.value = k;
      step = k < 0 ? null : steps[k].step;
      draw();
      show();
    };
    draw();
    return [
      el("label", { for: "steps-slider" }, "step"), slider, name, every,
      el("label", { for: "steps-depth" }, "at depth"), depth, picture, told,
    ];
  };

  byId("title").textContent = visible(title);
  byId("counts").textContent = `${many(prompts.length, "prompt")} · ${many(sum("trees"), "tree")} · ${many(sum("nodes"), "node")}`;
  byId("toolbar").append(...treegrpo.themes());
  byId("filterbar").append(
    el("span", { class: "module" }, el("label", { for: "filter" }, "prompt"), text),
    el("span", { class: "module" }, el("label", { for: "order" }, "order"), order, note),
    ...(steps.length > 1 ? [el("span", { class: "module" }, ...stepBar())] : []));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select")) return;
    event.preventDefault();
    text.focus();
  });
  show();
  document.documentElement.dataset.ready = "true";
})();
