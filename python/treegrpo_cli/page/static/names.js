/* treegrpo.rowName(i): what a screen reader says of a node's row. */
(() => {
  const { nodes, trees, statuses, visible, signed, number } = treegrpo;
  const WORDS = 120;

  const count = (n, one, many) => (n < 0 ? null : `${n.toLocaleString("en")} ${n === 1 ? one : many}`);
  const turn = (i) => visible(nodes.excerpt[i].slice(0, WORDS)) || `node ${i - trees[nodes.tree[i]].start}`;

  treegrpo.rowName = (i) => {
    const isRoot = nodes.parent[i] < 0;
    const advantage = treegrpo.column("advantage")?.[i] ?? NaN;
    const below = treegrpo.children(i).length;
    return [
      isRoot ? `tree ${trees[nodes.tree[i]].tree_id}, root` : `depth ${nodes.depth[i]}, turn ${turn(i)}`,
      isRoot ? null : Number.isNaN(advantage) ? "no advantage" : `advantage ${signed(advantage)}`,
      Number.isNaN(nodes.reward[i]) ? null : `reward ${number(nodes.reward[i])}`,
      count(nodes.num_leaves[i], "leaf", "leaves"),
      below > 1 ? `${below.toLocaleString("en")} siblings part here` : null,
      below ? null : statuses[nodes.status[i]].replace("_", " "),
    ].filter(Boolean).join(", ");
  };
})();
