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

  treegrpo.aligned = (siblings) => {
    const byTokens = siblings.every((i) => nodes.num_tokens[i] > 0);
    const units = siblings.map((i) => (byTokens ? treegrpo.tokens(i).ids : wordsOf(i)));
    const parts = units.map((own, k) => {
      const same = units.findIndex((other) => other.length === own.length && shared(own, other) === own.length);
      return { units: own, size: own.length, repeats: same < k ? same : -1, at: 0, nearest: -1 };
    });
    const distinct = parts.map((_, k) => k).filter((k) => parts[k].repeats < 0);
    let common = distinct.length > 1 ? Infinity : parts[0]?.size ?? 0;
    for (const k of distinct)
      for (const other of distinct) {
        if (other === k) continue;
        const along = shared(units[k], units[other]);
        common = Math.min(common, along);
        if (parts[k].nearest < 0 || along > parts[k].at) Object.assign(parts[k], { at: along, nearest: other });
      }
    return { byTokens, common, parts };
  };
})();
