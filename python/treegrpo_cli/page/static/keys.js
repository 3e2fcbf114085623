/* Single keys, where nothing is being typed, and the map of them that `?` shows. */
(() => {
  const { el, state, nodes } = treegrpo;
  const MAP = [
    ["↑ ↓", "row by row, in the tree and in the list of prompts"],
    ["← →", "hide or show what is below a row; to its parent, to its first child"],
    ["Page Up, Page Down, Home, End", "further at a time"],
    ["j k", "next and previous row of the tree"],
    ["h l", "previous and next sibling"],
    ["/", "search"],
    ["n N", "next and previous hit; in the search field Enter and Shift+Enter"],
    ["t", "to the tree"],
    ["p", "to the list of prompts"],
    ["?", "this map"],
    ["Escape", "close it; empty the search field"],
  ];

  const sibling = (direction) => {
    const parent = nodes.parent[state.node];
    if (parent < 0) return;
    const all = treegrpo.siblingsUnder(parent).filter(treegrpo.isShown);
    const next = all[all.indexOf(state.node) + direction];
    if (next !== undefined) treegrpo.select({ node: next });
  };
  const row = (key) => document.getElementById("tree-rows").dispatchEvent(new KeyboardEvent("keydown", { key, cancelable: true }));
  const focus = (id) => document.getElementById(id).focus();

  treegrpo.register({
    name: "keys",
    slot: "toolbar",
    start(element) {
      const close = el("button", { type: "button", onclick: () => map.close() }, "close");
      const single = el("input", { type: "checkbox", id: "single-keys" });
      single.checked = treegrpo.remembered("keys") !== "off";
      single.addEventListener("change", () => treegrpo.remember("keys", single.checked ? "on" : "off"));
      const map = el("dialog", { "aria-labelledby": "keys-title", class: "map" },
        el("h2", { id: "keys-title" }, "Keys"),
        el("dl", {}, ...MAP.flatMap(([keys, what]) => [el("dt", {}, keys), el("dd", {}, what)])),
        el("p", {}, single, " ", el("label", { for: "single-keys" }, "use single letters and signs as keys")),
        close);
      document.body.append(map);
      const open = el("button", { type: "button", "aria-haspopup": "dialog", onclick: () => map.showModal() }, "keys");
      element.append(open);

      const actions = new Map([
        ["j", () => row("ArrowDown")],
        ["k", () => row("ArrowUp")],
        ["h", () => sibling(-1)],
        ["l", () => sibling(1)],
        ["/", () => focus("search")],
        ["n", () => treegrpo.nextHit(1)],
        ["N", () => treegrpo.nextHit(-1)],
        ["t", () => focus("tree-rows")],
        ["p", () => focus("prompt-rows")],
        ["?", () => map.showModal()],
      ]);
      document.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || map.open || !single.checked) return;
        if (event.target.closest?.("input, select, textarea")) return;
        const action = actions.get(event.key);
        if (!action) return;
        event.preventDefault();
        action();
      });
    },
  });
})();
