/*
Where siblings were told apart.

  treegrpo.gaps(parents)          {pairs, gap} over pairs of siblings that have a value: how many there are, and the mean
                                  absolute difference of their values, null where there is no pair
  treegrpo.decision(parent)       "decided" where two siblings below it have values that differ, "undecided" where all
                                  that have one are equal, null where fewer than two have one
All roots of a prompt are one state: the first turns of all its trees are siblings.
*/
(() => {
  const FLAT = 1e-8;

  const valuesUnder = (parent) => {
    const value = treegrpo.column("value");
    if (!value) return [];
    return treegrpo.siblingsUnder(parent).map((i) => value[i]).filter((x) => !Number.isNaN(x)).sort((a, b) => a - b);
  };

  treegrpo.gaps = (parents) => {
    let [pairs, sum] = [0, 0];
    for (const parent of parents) {
      const values = valuesUnder(parent);
      pairs += (values.length * (values.length - 1)) / 2;
      values.forEach((x, k) => { sum += x * (2 * k - values.length + 1); });
    }
    return { pairs, gap: pairs ? Math.max(0, sum / pairs) : null };
  };

  treegrpo.decision = (parent) => {
    const values = valuesUnder(parent);
    if (values.length < 2) return null;
    return values[values.length - 1] - values[0] > FLAT ? "decided" : "undecided";
  };
})();
