/*
Turns of siblings -> where they part.

  treegrpo.aligned(siblings)   {byTokens, common, parts}: `common` is how many tokens (words where the file has no tokens)
                               all of them begin with; parts[k] says of sibling k: {units, size, repeats, at, nearest}
    repeats    the first sibling that is the same throughout, or -1
    at         the place of the first token that no other sibling has there: before it, it goes along with `nearest`
    nearest    the sibling with which it shares most, -1 where there is no other
A turn and the observation behind it are compared as one sequence.

  treegrpo.turnsOf(branch)     the different turns below a branching point: [{members: places among the siblings}]
  treegrpo.worthOf(siblings, turn)   {value, leaves}: what a turn is worth over all leaves below its members
  treegrpo.gapOf(branch)       between the best and the worst of them; 0 where only one is scored
*/
(() => {
  const { nodes, trees } = treegrpo;

  const wordsOf = (i) => {
    const tree = trees[nodes.tree[i]];
    const { text, observation } = treegrpo.texts(tree.place);
    return `${text[i - tree.start]}\n${observation[i - tree.start]}`.match(/\s*\S+/g) ?? [];
  };

  const shared = (a, b) => {
    const size = Math.min(a.length, b.length);
    let k = 0;
    while (k < size && a[k] === b[k]) k++;
    return k;
  };

  const turns = new Map();
  treegrpo.turnsOf = (branch) => {
    if (!turns.has(branch)) {
      const siblings = treegrpo.siblingsUnder(branch);
      const byTokens = siblings.every((i) => nodes.num_tokens[i] > 0);
      const byKey = new Map();
      siblings.forEach((i, k) => {
        const key = byTokens ? treegrpo.tokens(i).ids.join() : wordsOf(i).join("");
        if (!byKey.has(key)) byKey.set(key, { members: [] });
        byKey.get(key).members.push(k);
      });
      turns.set(branch, Array.from(byKey.values()));
    }
    return turns.get(branch);
  };

  treegrpo.worthOf = (siblings, turn) => {
    let [sum, leaves] = [0, 0];
    for (const k of turn.members) {
      const value = treegrpo.column("value")[siblings[k]];
      if (Number.isNaN(value)) continue;
      sum += value * nodes.num_leaves[siblings[k]];
      leaves += nodes.num_leaves[siblings[k]];
    }
    return { value: leaves ? sum / leaves : NaN, leaves };
  };

  treegrpo.gapOf = (branch) => {
    const siblings = treegrpo.siblingsUnder(branch);
    const values = treegrpo.turnsOf(branch).map((turn) => treegrpo.worthOf(siblings, turn).value).filter((value) => !Number.isNaN(value));
    return values.length > 1 ? Math.max(...values) - Math.min(...values) : 0;
  };

  const inOrder = (a, b) => {
    const k = shared(a, b);
    return k === a.length || k === b.length ? a.length - b.length : a[k] < b[k] ? -1 : 1;
  };

  /* In the order of their tokens, the one that goes along longest stands beside; the first and the last share least. */
  treegrpo.aligned = (siblings) => {
    const byTokens = siblings.every((i) => nodes.num_tokens[i] > 0);
    const units = siblings.map((i) => (byTokens ? treegrpo.tokens(i).ids : wordsOf(i)));
    const parts = units.map((own) => ({ units: own, size: own.length, repeats: -1, at: 0, nearest: -1 }));
    const order = units.map((_, k) => k).sort((a, b) => inOrder(units[a], units[b]) || a - b);
    const distinct = [];
    for (const k of order) {
      const before = distinct[distinct.length - 1];
      if (before !== undefined && inOrder(units[before], units[k]) === 0) parts[k].repeats = before;
      else distinct.push(k);
    }
    const goAlong = (k, other) => {
      const along = shared(units[k], units[other]);
      if (parts[k].nearest < 0 || along > parts[k].at) Object.assign(parts[k], { at: along, nearest: other });
    };
    for (let place = 1; place < distinct.length; place++) {
      goAlong(distinct[place], distinct[place - 1]);
      goAlong(distinct[place - 1], distinct[place]);
    }
    const [first, last] = [units[distinct[0]], units[distinct[distinct.length - 1]]];
    return { byTokens, common: shared(first, last), parts };
  };
})();
