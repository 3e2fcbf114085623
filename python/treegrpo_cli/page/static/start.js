/* Everything is there: the modules start, in the order in which they were registered. */
(() => {
  const { el, visible, prompts, trees, nodes, links } = treegrpo;
  const slot = (id) => document.getElementById(id);
  const many = (n, one, more) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;

  slot("title").textContent = visible(treegrpo.title);
  slot("counts").textContent =
    `${many(prompts.length, "prompt", "prompts")} · ${many(trees.length, "tree", "trees")} · ${many(nodes.size, "node", "nodes")}`;
  slot("links").append(...links.map((link) => el("a", { href: link.href }, visible(link.label))));

  const before = (id) => {
    const element = el("div", { class: "slot", hidden: true });
    slot(id).before(element);
    return element;
  };
  treegrpo.start(new Map([
    ["toolbar", slot("toolbar")],
    ["filterbar", slot("filterbar")],
    ["list", before("prompt-rows")],
    ["tree", before("tree-rows")],
  ]));
  document.documentElement.dataset.ready = "true";
})();
